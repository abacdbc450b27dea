"""Any: what every other strategy has to beat."""

from tmt_d2.projects.label_selection.strategies.interface import Choice, Question


def choose(question: Question) -> Choice:
    return Choice(question.rng.permutation(question.candidates)[: question.budget].tolist())
