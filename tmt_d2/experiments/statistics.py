"""Spread over seeds, paired differences with t intervals, and rank correlation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, pearsonr, spearmanr, t

LEVEL = 0.95
FEWEST = 3  # pairs, or seeds, from which a variance is estimated
Cell = tuple[tuple[str, str], int]  # pair and seed


class Difference(NamedTuple):
    """mean of n paired differences; low, high: its 95 % interval, None where there are too few of them."""

    mean: float
    low: float | None
    high: float | None
    n: int
    values: list[float]

    @property
    def is_clear(self) -> bool:
        """True if the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation; None for the latter of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_difference(
    values: Mapping[Cell, float], baseline: Mapping[Cell, float], fewest: int = FEWEST
) -> Difference | None:
    """Return the mean of ``values - baseline`` over the (pair, seed) that both have; None where there is none.

    The interval generalizes to other pairs and seeds. With fewer than three seeds that at least half of the pairs have,
    it generalizes to other pairs with these seeds; within a single pair, to other seeds of that pair. Two pairs have no
    interval.

    fewest: number of seeds instead of three.
    """
    shared = sorted(values.keys() & baseline.keys())
    if not shared:
        return None
    differences = np.array([values[cell] - baseline[cell] for cell in shared])
    mean, half = float(differences.mean()), _half_width(differences, shared, fewest)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Difference(mean, low, high, len(shared), differences.tolist())


def _half_width(differences: np.ndarray, cells: Sequence[Cell], fewest: int) -> float | None:
    """Return half of the t interval of the mean, for effects of pairs and of seeds that are crossed and random.

    The variance is the largest of three estimates: from means by pair, from means by seed, and their sum minus the
    noise, which both contain. The degrees of freedom are those of the larger of the first two.

    It leaves out a true 0 in 5 % of cases with one kind of effect; with both (simulated, normal, 3 to 20 pairs) in at
    most 7 %, in 5 % where one effect is far larger than noise, and in 1 to 3 % where all is noise. Sources and targets
    that pairs share are not accounted for.
    """
    pairs, seeds = [pair for pair, _ in cells], [seed for _, seed in cells]
    number = len(set(pairs))
    common_seeds = sum(seeds.count(seed) >= number / 2 for seed in set(seeds))
    if 1 < number < FEWEST:
        return None
    sides = [_one_hot(names) for names, n, few in ((pairs, number, FEWEST), (seeds, common_seeds, fewest)) if n >= few]
    if not sides:
        return None
    estimates = [_variance_of_mean(differences, groups) for groups in sides]
    variance, freedom = max(estimates)
    if len(sides) > 1:
        both = sum(each for each, _ in estimates) - _noise(differences, np.hstack(sides)) / len(cells)
        variance = max(variance, both)
    return float(t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance))


def _one_hot(names: Sequence[Hashable]) -> np.ndarray:
    """Return the one-hot rows, (n, distinct names)."""
    distinct = list(dict.fromkeys(names))
    return np.eye(len(distinct))[[distinct.index(name) for name in names]]


def _variance_of_mean(differences: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return the variance of the mean if groups (n, g), one-hot, have random effects, and its degrees of freedom.

    The latter are Satterthwaite's. For groups of one size these are the sample variance of their means by g, and g - 1.
    """
    shares = groups.mean(0)
    squares = shares @ shares  # variance of the mean for effects of variance 1
    deviations = (differences - differences.mean()) @ groups / len(differences)  # of a group, as it counts in the mean
    covariance = np.outer(shares, shares) * (np.eye(len(shares)) - shares[:, None] - shares + squares)  # of these
    trace = covariance.trace()
    return float(deviations @ deviations * squares / trace), float(trace**2 / np.square(covariance).sum())


def _noise(differences: np.ndarray, groups: np.ndarray) -> float:
    """Return the variance that no sum of group effects explains.

    groups: (n, all of both sides), one-hot within a side.
    """
    effects, _, rank, _ = np.linalg.lstsq(groups, differences, rcond=None)
    return float(np.square(differences - groups @ effects).sum() / max(1, len(differences) - rank))


def gains_by_pair(values: Mapping[Cell, float], baseline: Mapping[Cell, float]) -> dict[tuple[str, str], float]:
    """Return the mean of ``values - baseline`` of each pair, over the seeds that both have."""
    differences: dict[tuple[str, str], list[float]] = {}
    for key in values.keys() & baseline.keys():
        differences.setdefault(key[0], []).append(values[key] - baseline[key])
    return {pair: float(np.mean(each)) for pair, each in differences.items()}


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Return Kendall's tau-b and Pearson's r; None for fewer than three points, or where one side is constant."""
    if not _is_ranked(x, y):
        return None
    return float(kendalltau(x, y).statistic), float(pearsonr(x, y).statistic)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's correlation; None in the cases of ``correlation``."""
    return float(spearmanr(x, y).statistic) if _is_ranked(x, y) else None


def _is_ranked(x: Sequence[float], y: Sequence[float]) -> bool:
    return len(x) >= 3 and len(set(x)) > 1 and len(set(y)) > 1
