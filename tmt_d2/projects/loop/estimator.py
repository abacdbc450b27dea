"""Metrics of many images from the labels of a few: strata, draws, and the difference estimator with its interval.

The total over all images is the total of what a model predicts for them, plus the weighted differences between labels
and prediction on the drawn images (Särndal et al., Model Assisted Survey Sampling, 1992, 6.3). It is unbiased however
wrong the predictions are; the better they are, the narrower is the interval.

Letters: N images, n drawn images, K classes, B resamplings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95  # of the interval
RESAMPLINGS = 1000
LEAST = 2  # drawn images of a stratum: fewer have no variance


@dataclass(frozen=True)
class Measured:
    """A metric in percent with its interval; NaN without ``LEAST`` drawn images."""

    value: float
    low: float
    high: float


def strata_of(quality: np.ndarray, count: int) -> np.ndarray:
    """Return the stratum of each image, (N,) from 0: ``count`` parts of equal size, the lowest quality first."""
    ranks = np.argsort(np.argsort(quality, kind="stable"), kind="stable")
    return ranks * count // len(quality)


def allocate(strata: np.ndarray, quality: np.ndarray, drawn: np.ndarray, free: np.ndarray, budget: int) -> np.ndarray:
    """Return the number of images to draw from each stratum.

    The total of a stratum is proportional to its size times the deviation of its errors, sqrt(1 - mean quality)
    (Neyman), but at least ``LEAST``.

    Args:
        strata: (N,). quality: (N,) in [0, 1]. drawn: (N,) bool, before. free: (N,) bool, may be drawn.
        budget: at most the number of free images.
    """
    number = int(strata.max()) + 1
    weights = np.array(
        [(strata == h).sum() * math.sqrt(max(1e-4, 1 - quality[strata == h].mean())) for h in range(number)]
    )
    had = np.bincount(strata[drawn], minlength=number)
    left = np.bincount(strata[free], minlength=number)
    new = np.zeros(number, int)
    for _ in range(budget):  # each image to the stratum that has the fewest for its weight
        count = had + new
        need = np.where(count < LEAST, 1e9 - count, weights / (count + 0.5))
        new[int(np.argmax(np.where(new < left, need, -1.0)))] += 1
    return new


def draw(
    strata: np.ndarray, quality: np.ndarray, drawn: np.ndarray, free: np.ndarray, budget: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the ascending indices of new images: a simple random sample of each stratum. Arguments: ``allocate``."""
    counts = allocate(strata, quality, drawn, free, budget)
    chosen = [rng.permutation(np.flatnonzero(free & (strata == h)))[:count] for h, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen))


def merged(strata: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Join neighboring strata until each has ``LEAST`` drawn images, or one stratum is left; (N,) from 0."""
    result, label, count = np.zeros_like(strata), 0, 0
    for h in np.unique(strata):
        result[strata == h] = label
        count += int((strata[drawn] == h).sum())
        if count >= LEAST:
            label, count = label + 1, 0
    if label and count < LEAST:
        result[result == label] = label - 1
    return result


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """(..., K, K), row = true class -> (..., K) percent; 0 for a class that is neither there nor predicted."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    return 100 * np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """(..., K, K) -> (...) percent, share of right pixels."""
    return 100 * np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))


def difference_estimate(
    predicted: np.ndarray,
    measured: np.ndarray,
    drawn: np.ndarray,
    strata: np.ndarray,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Measured]:
    """Estimate "mIoU", "accuracy", and "IoU-<name>" of each class that occurs, over all images.

    The interval is symmetric: Student's quantile times the deviation over resamplings within strata, rescaled for
    their size and for finite strata (Rao and Wu, JASA 1988). A class counts if it occurs in the labels.

    Args:
        predicted: (N, K, K) float, expected confusion matrices, row = true class. measured: (n, K, K), of the drawn
            images. drawn: (n,) int, ascending indices of the images. strata: (N,) int.
        classes: names of the K classes; empty for the means alone.
    """
    strata = merged(strata, drawn)
    sizes, counts = np.bincount(strata), np.bincount(strata[drawn], minlength=strata.max() + 1)
    of_drawn = strata[drawn]
    weights = sizes[of_drawn] / counts[of_drawn]
    residuals = measured - predicted[drawn]
    total = predicted.sum(0, dtype=np.float64)
    occurs = measured.sum((0, 2)) > 0
    rng = np.random.default_rng(seed)
    factors = np.ones((RESAMPLINGS, len(drawn)))
    for h in np.unique(of_drawn):
        (members,), n = np.nonzero(of_drawn == h), int(counts[h])
        if n >= LEAST:
            repeats = rng.multinomial(n - 1, np.full(n, 1 / n), RESAMPLINGS)
            factors[:, members] += math.sqrt(1 - n / sizes[h]) * (n / (n - 1) * repeats - 1)
    sums = total + np.tensordot(np.concatenate([np.ones((1, len(drawn))), factors]) * weights, residuals, 1)
    sums = sums.clip(min=0)  # the difference of small numbers
    degrees = len(drawn) - len(sizes)
    quantile = float(student.ppf((1 + LEVEL) / 2, degrees)) if degrees > 0 else math.nan
    iou = class_iou(sums)
    metrics = {"mIoU": iou[:, occurs].mean(1), "accuracy": accuracy(sums)}
    metrics |= {f"IoU-{name}": iou[:, index] for index, name in enumerate(classes) if occurs[index]}
    result = {}
    for name, (value, *resampled) in metrics.items():
        half = quantile * float(np.std(resampled))
        result[name] = Measured(float(value), float(max(0.0, value - half)), float(min(100.0, value + half)))
    return result


def images_to_halve(drawn: int, images: int) -> int:
    """Return how many more images halve the interval: (1/n' - 1/N) = (1/n - 1/N) / 4."""
    return math.ceil(1 / ((1 / drawn - 1 / images) / 4 + 1 / images) - 1e-9) - drawn if drawn < images else 0
