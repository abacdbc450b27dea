"""The highest entropy of the predicted classes, mean over pixels. Alone it loves what is dark or blurred."""

from tmt_d2.projects.label_selection.strategies.interface import Choice, Question


def choose(question: Question) -> Choice:
    return question.highest(question.pool.entropy)
