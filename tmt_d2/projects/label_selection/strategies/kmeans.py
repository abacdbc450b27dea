"""One picture of each of the pool's k-means clusters, the one next to the centre."""

from tmt_d2.projects.label_selection.strategies.interface import Choice, Question, clusters_of


def choose(question: Question) -> Choice:
    return clusters_of(question)
