"""Strategies, one a file: which pictures of a pool to label. What each is worth: docs/labelling.md."""

from __future__ import annotations

from collections.abc import Callable

from tmt_d2.projects.label_selection.strategies import (
    clue,
    coverage,
    domain,
    entropy,
    kcenter,
    kmeans,
    margin,
    random,
)
from tmt_d2.projects.label_selection.strategies.interface import Choice, Question

Strategy = Callable[[Question], Choice]

STRATEGIES: dict[str, Strategy] = {
    "random": random.choose,
    "entropy": entropy.choose,
    "margin": margin.choose,
    "kcenter": kcenter.choose,
    "kmeans": kmeans.choose,
    "clue": clue.choose,
    "domain": domain.choose,
    "coverage": coverage.choose,
}
AUTO = "kmeans"  # what "auto" stands for
