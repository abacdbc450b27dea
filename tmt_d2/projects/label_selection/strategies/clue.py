"""CLUE (arXiv 2010.08666): k-means in which a picture weighs as much as its predictions are uncertain.

The weights are clipped to the 5th and 95th percentile of the pool: a few dark frames do not draw all centres.
"""

import numpy as np

from tmt_d2.projects.label_selection.strategies.interface import Choice, Question, clusters_of

CLIPPED = (5, 95)


def choose(question: Question) -> Choice:
    entropy = question.pool.entropy
    low, high = np.percentile(entropy, CLIPPED)
    return clusters_of(question, np.clip(entropy, max(low, 1e-6), max(high, 1e-6)))
