"""The most unlike the source, by the domain discriminators: the density ratio d / (1 - d) is exp(logit of E) (AADA,
arXiv 1904.07848)."""

import numpy as np

from tmt_d2.errors import UserError
from tmt_d2.projects.label_selection.strategies.interface import Choice, Question

NEEDS = "--strategy domain needs a model with trained discriminators, as the estimator stage makes it"


def choose(question: Question) -> Choice:
    """
    Raises:
        UserError: the model has no estimator.
    """
    if np.isnan(question.pool.domain).any():
        raise UserError(NEEDS)
    return question.highest(question.pool.domain)
