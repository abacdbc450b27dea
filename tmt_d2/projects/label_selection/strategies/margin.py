"""The smallest margin between the two most probable classes, mean over pixels."""

from tmt_d2.projects.label_selection.strategies.interface import Choice, Question


def choose(question: Question) -> Choice:
    return question.highest(-question.pool.margin)
