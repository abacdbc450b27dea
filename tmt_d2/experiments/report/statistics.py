"""Spread over seeds, paired differences with bootstrap intervals, and rank correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, pearsonr

RESAMPLES = 10_000
Cell = tuple[tuple[str, str], int]  # pair and seed


class Difference(NamedTuple):
    """mean of n paired differences; low, high: its 95 % interval, None where there are too few to say."""

    mean: float
    low: float | None
    high: float | None
    n: int
    values: list[float]

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, which one value does not have."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_difference(values: Mapping[Cell, float], baseline: Mapping[Cell, float]) -> Difference | None:
    """The mean of ``values - baseline`` over the (pair, seed) that both have; None where there is none.

    The interval resamples pairs, with all their seeds: seeds of one pair share data and are no independent evidence.
    Within a single pair it resamples seeds. Fewer than three of either have no interval.
    """
    shared = sorted(values.keys() & baseline.keys())
    if not shared:
        return None
    groups: dict[tuple[str, str], list[float]] = {}
    for key in shared:
        groups.setdefault(key[0], []).append(values[key] - baseline[key])
    differences = [value for group in groups.values() for value in group]
    clusters = list(groups.values()) if len(groups) > 1 else [[value] for value in differences]
    mean = float(np.mean(differences))
    if len(clusters) < 3:
        return Difference(mean, None, None, len(differences), differences)
    sums, counts = np.array([sum(c) for c in clusters]), np.array([len(c) for c in clusters])
    chosen = np.random.default_rng(0).integers(len(clusters), size=(RESAMPLES, len(clusters)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(mean, float(low), float(high), len(differences), differences)


def gains_by_pair(values: Mapping[Cell, float], baseline: Mapping[Cell, float]) -> dict[tuple[str, str], float]:
    """The mean of ``values - baseline`` of each pair, over the seeds that both have."""
    found: dict[tuple[str, str], list[float]] = {}
    for key in values.keys() & baseline.keys():
        found.setdefault(key[0], []).append(values[key] - baseline[key])
    return {pair: float(np.mean(differences)) for pair, differences in found.items()}


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Kendall's tau-b and Pearson's r; None for fewer than three points, or where one side is constant."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(kendalltau(x, y).statistic), float(pearsonr(x, y).statistic)
