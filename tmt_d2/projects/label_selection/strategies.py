"""Strategies that choose the images of a pool to label next. Measurements: docs/results.md.

Letters: n images of the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from tmt_d2.errors import UserError

if TYPE_CHECKING:
    from tmt_d2.projects.label_selection.pool import Pool

DOMAIN_NEEDS = "it needs a model with trained discriminators, by method estimator or tmt"
CLUE_PERCENTILES = (5, 95)  # of the entropy, between which CLUE clips its weights


@dataclass(frozen=True)
class Selection:
    """Images to label.

    Attributes:
        indices: rows of the pool, the most valuable first.
        clusters: (n,) cluster of every image of the pool; None where the strategy has none.
    """

    indices: list[int]
    clusters: np.ndarray | None = None


Strategy = Callable[["Pool", int, np.ndarray, np.random.Generator], Selection]
"""(pool, budget, labeled, rng) -> selection; ``labeled``: rows of the pool that have a label and are not selected."""


def check_strategy(strategy: str) -> None:
    """
    Raises:
        UserError: the strategy needs scikit-learn, which is not installed.
    """
    if strategy in CLUSTERING and find_spec("sklearn") is None:
        hint = "pip install 'tmt_d2[select]'"
        raise UserError("it needs scikit-learn", key="strategy", value=strategy, hint=hint)


def unlabeled(pool: Pool, labeled: np.ndarray) -> np.ndarray:
    """Ascending indices of the images that may be selected."""
    return np.setdiff1d(np.arange(len(pool)), labeled)


def random(pool: Pool, budget: int, labeled: np.ndarray, rng: np.random.Generator) -> Selection:
    """The control that every other strategy has to beat."""
    return Selection(rng.permutation(unlabeled(pool, labeled))[:budget].tolist())


def highest(score: Callable[[Pool], np.ndarray]) -> Strategy:
    """Return a strategy that selects the images with the highest score, (n,), even if they are alike."""

    def select(pool: Pool, budget: int, labeled: np.ndarray, rng: np.random.Generator) -> Selection:
        candidates = unlabeled(pool, labeled)
        order = np.argsort(-score(pool)[candidates], kind="stable")
        return Selection(candidates[order[:budget]].tolist())

    return select


def domain_score(pool: Pool) -> np.ndarray:
    """The domain logit: the density ratio d / (1 - d) of AADA (arXiv 1904.07848) is its exponential.

    Raises:
        UserError: the model has no estimator.
    """
    if np.isnan(pool.domain).any():
        raise UserError(DOMAIN_NEEDS, key="--strategy", value="domain")
    return pool.domain


def kcenter(pool: Pool, budget: int, labeled: np.ndarray, rng: np.random.Generator) -> Selection:
    """Greedy k-center (core-set, arXiv 1708.00489): repeatedly the image farthest from all labeled and selected ones.

    Without labeled images the first is the one nearest to the mean.
    """
    features, candidates = pool.features, unlabeled(pool, labeled)
    if len(labeled):
        distances = np.min([np.linalg.norm(features - features[i], axis=1) for i in labeled], axis=0)
    else:
        distances = -np.linalg.norm(features - features.mean(0), axis=1)
    selected: list[int] = []
    while len(selected) < min(budget, len(candidates)):
        left = np.setdiff1d(candidates, selected)
        farthest = int(left[np.argmax(distances[left])])
        new = np.linalg.norm(features - features[farthest], axis=1)
        distances = np.minimum(distances, new) if selected or len(labeled) else new
        selected.append(farthest)
    return Selection(selected)


def kmeans(
    pool: Pool, budget: int, labeled: np.ndarray, rng: np.random.Generator, weights: np.ndarray | None = None
) -> Selection:
    """From each k-means cluster of the features the image nearest to its center, the heaviest cluster first.

    There are as many clusters as selected and labeled images together. Clusters with a labeled image come last. If
    clusters are fewer than the budget, the second nearest images follow, and so on.

    Args:
        weights: (n,) > 0, of the images; None: equal.

    Raises:
        UserError: scikit-learn is not installed.
    """
    check_strategy("kmeans")
    from sklearn.cluster import KMeans

    count = min(budget + len(labeled), len(pool))
    model = KMeans(count, n_init=10, random_state=int(rng.integers(2**31))).fit(pool.features, sample_weight=weights)
    clusters = model.labels_
    mass = np.bincount(clusters, weights, minlength=count)
    is_labeled = np.isin(np.arange(count), clusters[labeled])
    place = np.argsort(np.lexsort((-mass, is_labeled)))  # of each cluster
    candidates = unlabeled(pool, labeled)
    distances = np.linalg.norm(pool.features - model.cluster_centers_[clusters], axis=1)[candidates]
    rounds: Counter[int] = Counter()
    order: list[tuple[int, int, int]] = []
    for index in candidates[np.argsort(distances, kind="stable")].tolist():
        cluster = int(clusters[index])
        order.append((rounds[cluster], int(place[cluster]), index))
        rounds[cluster] += 1
    return Selection([index for *_, index in sorted(order)[:budget]], clusters)


def clue(pool: Pool, budget: int, labeled: np.ndarray, rng: np.random.Generator) -> Selection:
    """CLUE (arXiv 2010.08666): k-means weighted by entropy, clipped so that a few dark images do not draw all centers.

    Raises:
        UserError: scikit-learn is not installed.
    """
    low, high = np.percentile(pool.entropy, CLUE_PERCENTILES)
    return kmeans(pool, budget, labeled, rng, np.clip(pool.entropy, max(low, 1e-6), max(high, 1e-6)))


STRATEGIES: dict[str, Strategy] = {
    "random": random,
    "entropy": highest(lambda pool: pool.entropy),
    "margin": highest(lambda pool: -pool.margin),
    "kcenter": kcenter,
    "kmeans": kmeans,
    "clue": clue,
    "domain": highest(domain_score),
}
CLUSTERING = ("kmeans", "clue")
AUTO = "kmeans"  # the strategy that "auto" stands for
