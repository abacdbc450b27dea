"""The results of a matrix and their differences to the baseline, which every section reads."""

from __future__ import annotations

from tmt_d2.adaptation import BASELINE
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.experiments.results import ALL, Labels, Pair, Results, Run, by_cell
from tmt_d2.experiments.statistics import Difference, gains_by_pair, paired_difference
from tmt_d2.projects.report.charts import color_of

MIOU = METRICS[0]


class ReportData:
    """The results of a matrix, with the methods, labels and colors that all sections share.

    Attributes:
        methods, amounts, pairs: methods, amounts of labels and pairs of the results.
        others: methods without the baseline.
        labels: the amount of labels that most of the page is about: the largest.
        colors: by method, the same in every chart.
    """

    def __init__(self, results: Results):
        self.results = results
        self.methods, self.amounts, self.pairs = results.methods(), results.labels(), results.pairs()
        self.others = [method for method in self.methods if method != BASELINE]
        names = [*self.methods, *sorted({run.method for run in results.swept} - set(self.methods))]
        self.colors = {name: color_of(index) for index, name in enumerate(names)}
        self.labels = self.amounts[0] if self.amounts else ALL

    def runs(self, method: str, labels: Labels | None = None) -> list[Run]:
        return self.results.of(method, labels or self.labels)

    def difference(self, method: str, metric: str = MIOU, labels: Labels | None = None) -> Difference | None:
        """``method`` minus the baseline; None where they share no pair and seed."""
        return paired_difference(
            by_cell(self.runs(method, labels), metric), by_cell(self.runs(BASELINE, labels), metric)
        )

    def gains(self, method: str, metric: str = MIOU, labels: Labels | None = None) -> dict[Pair, float]:
        """``method`` minus the baseline by pair, over the seeds that both have."""
        return gains_by_pair(by_cell(self.runs(method, labels), metric), by_cell(self.runs(BASELINE, labels), metric))

    def is_complete(self, method: str) -> bool:
        """Return True if ``method`` was run wherever the baseline was, so that their means can be compared."""
        return by_cell(self.runs(method), MIOU).keys() >= by_cell(self.runs(BASELINE), MIOU).keys()
