"""What a strategy is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tmt_d2.errors import UserError
from tmt_d2.projects.label_selection.pool import Pool


@dataclass(frozen=True)
class Question:
    """budget pictures of the pool, none of those with the indices ``labelled``; random draws come from ``rng``."""

    pool: Pool
    budget: int
    labelled: np.ndarray
    rng: np.random.Generator

    @property
    def candidates(self) -> np.ndarray:
        """Indices of the pictures that may be chosen, ascending."""
        return np.setdiff1d(np.arange(len(self.pool)), self.labelled)

    def highest(self, values: np.ndarray) -> Choice:
        """The candidates with the highest of ``values`` (n,)."""
        order = np.argsort(-values[self.candidates], kind="stable")
        return Choice(self.candidates[order[: self.budget]].tolist())


@dataclass(frozen=True)
class Choice:
    """indices: in the order of their worth. clusters: (n,) of each picture of the pool, if there are any; else None."""

    indices: list[int]
    clusters: np.ndarray | None = None


def clusters_of(question: Question, weights: np.ndarray | None = None) -> Choice:
    """k-means of the features; one picture of each cluster, that next to its centre, the heaviest clusters first.

    There are as many clusters as pictures to choose and labelled ones together; a cluster with a labelled picture is
    covered and comes last, largest first.

    Args:
        weights: (n,) of the pictures, > 0; None: all the same.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise UserError("this strategy needs scikit-learn: pip install scikit-learn") from error
    pool, labelled = question.pool, question.labelled
    count = min(question.budget + len(labelled), len(pool))
    seed = int(question.rng.integers(2**31))
    model = KMeans(count, n_init=10, random_state=seed).fit(pool.features, sample_weight=weights)
    clusters = model.labels_
    mass = np.bincount(clusters, weights, minlength=count)
    covered = np.isin(np.arange(count), clusters[labelled])
    distances = np.linalg.norm(pool.features - model.cluster_centers_[clusters], axis=1)
    chosen: list[int] = []
    while len(chosen) < question.budget:
        before = len(chosen)
        for cluster in np.lexsort((-mass, covered)):
            members = np.setdiff1d(np.flatnonzero(clusters == cluster), [*labelled, *chosen])
            if len(members) and len(chosen) < question.budget:
                chosen.append(int(members[np.argmin(distances[members])]))
        if len(chosen) == before:
            break
    return Choice(chosen, clusters)
