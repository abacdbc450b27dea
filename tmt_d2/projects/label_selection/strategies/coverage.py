"""Greedily the pictures that show, together with what is labelled, most of every class that is predicted.

The gain of a class grows with the root of its share, so that the second picture full of road is worth less than the
first, and a rare class, divided by its mean share in the pool, as much as a frequent one.
"""

import numpy as np

from tmt_d2.projects.label_selection.strategies.interface import Choice, Question


def choose(question: Question) -> Choice:
    shares = question.pool.classes / np.maximum(question.pool.classes.mean(0), 1e-4)
    shown = shares[question.labelled].sum(0)
    chosen: list[int] = []
    while len(chosen) < min(question.budget, len(question.candidates)):
        open_ = np.setdiff1d(question.candidates, chosen)
        best = int(open_[np.argmax(np.sqrt(shown + shares[open_]).sum(1))])
        chosen.append(best)
        shown = shown + shares[best]
    return Choice(chosen)
