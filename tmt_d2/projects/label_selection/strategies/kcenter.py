"""k-center, greedily (core-set, arXiv 1708.00489): always the picture that is farthest from all that are chosen.

It begins with what is labelled, or else with the picture nearest to the mean.
"""

import numpy as np

from tmt_d2.projects.label_selection.strategies.interface import Choice, Question


def choose(question: Question) -> Choice:
    features = question.pool.features
    chosen: list[int] = []
    if len(question.labelled):
        nearest = np.min([np.linalg.norm(features - features[i], axis=1) for i in question.labelled], axis=0)
    else:
        first = int(np.argmin(np.linalg.norm(features - features.mean(0), axis=1)))
        chosen, nearest = [first], np.linalg.norm(features - features[first], axis=1)
    while len(chosen) < min(question.budget, len(question.candidates)):
        open_ = np.setdiff1d(question.candidates, chosen)
        farthest = int(open_[np.argmax(nearest[open_])])
        chosen.append(farthest)
        nearest = np.minimum(nearest, np.linalg.norm(features - features[farthest], axis=1))
    return Choice(chosen)
