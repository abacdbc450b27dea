"""Estimates without target labels against the mIoU that was measured (TEST.BEST.METRIC estimated)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmt_d2.evaluation.semantic import ESTIMATED
from tmt_d2.experiments.results import Run
from tmt_d2.projects.report.charts import Chart, Series
from tmt_d2.projects.report.data import MIOU, ReportData
from tmt_d2.projects.report.elements import Cell, Figures, Section, Table, TableRow

LEAD = (
    "mIoU estimated from the model's confidence and transferability, without a label of the target. Regret: the best "
    "measured mIoU of a pair, seed and amount of labels minus that of the run with the best estimate."
)


def without_labels(data: ReportData) -> Section:
    runs = [run for run in data.results.fine_tuned if ESTIMATED in run.values]
    if not runs:
        return Section("estimated", "Known without labels")
    series = []
    for method in data.methods:
        if points := [_point(run) for run in runs if run.method == method]:
            series.append(Series(method, data.colors[method], *zip(*points)))
    errors = [measured - estimated for estimated, measured in map(_point, runs)]
    inside = [run.values[f"{ESTIMATED}-low"] <= run.values[MIOU] <= run.values[f"{ESTIMATED}-high"] for run in runs]
    facts = {
        "runs": str(len(runs)),
        "mean error": f"{np.mean(np.abs(errors)):.1f}",
        "intervals that hold the mIoU": f"{np.mean(inside):.0%}",
        "mean regret": f"{np.mean(regrets(runs)):.1f}",
    }
    table = Table(["", "value"], [TableRow(name, [Cell(value)]) for name, value in facts.items()])
    chart = Chart(series, "estimated mIoU", "measured mIoU", "points", has_legend=True)
    return Section("estimated", "Known without labels", LEAD, [Figures([("", chart)]), table])


def regrets(runs: Sequence[Run]) -> list[float]:
    """Return the regret of each pair, seed and amount of labels that several methods were run for."""
    cells: dict[object, list[tuple[float, float]]] = {}
    for run in runs:
        cells.setdefault((run.cell, run.labels), []).append(_point(run))
    return [max(measured for _, measured in cell) - max(cell)[1] for cell in cells.values() if len(cell) > 1] or [0.0]


def _point(run: Run) -> tuple[float, float]:
    """(estimated, measured)"""
    return run.values[ESTIMATED], run.values[MIOU]
