"""Gains of each method over the baseline: over all pairs with intervals, and by class."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from tmt_d2.adaptation import BASELINE, TASKS
from tmt_d2.experiments.results import IOU, by_cell, classes_of
from tmt_d2.experiments.statistics import Difference
from tmt_d2.projects.report.charts import IntervalChart
from tmt_d2.projects.report.data import ReportData
from tmt_d2.projects.report.elements import Block, Figures, HeatTable, Note, Section, Tabs

LARGE_GAIN = 3.0  # points that have the full color: the same for every method, so that noise stays pale
DIFFERENCES = Markup(
    "Difference in mIoU to full fine-tuning on the same pair with the same seed. Dots are single runs; bars are 95 % t "
    "intervals of the mean over pairs and, from three seeds on, over seeds, which the pairs have in common; with fewer "
    "they hold for these seeds. <b>A gray bar includes 0: no difference has been shown.</b> Pairs also share sources "
    "and targets, which is not accounted for: intervals are too narrow rather than too wide."
)


def differences(data: ReportData) -> Section:
    panes: list[tuple[str, list[Block]]] = []
    for labels in data.amounts:
        by_method = {method: data.difference(method, labels=labels) for method in data.others}
        rows = [(method, difference) for method, difference in by_method.items() if difference is not None]
        if rows:
            # A method that trains a part of the model loses so much that it would set the scale.
            charted = [row for row in rows if row[0] not in TASKS or not TASKS[row[0]].trains] or rows
            chart = IntervalChart(charted, f"points of mIoU, minus {BASELINE}")
            panes.append((str(labels), [chart, Note("; ".join(_text(*row) for row in rows))]))
    return Section("differences", f"Minus {BASELINE}", DIFFERENCES, [Tabs("differences", panes)] if panes else [])


def _text(method: str, difference: Difference) -> str:
    if difference.low is None:
        return f"{method} {difference.mean:+.2f} (no interval)"
    return f"{method} {difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


def classes(data: ReportData) -> Section:
    names = classes_of(data.runs(BASELINE))
    gains = {
        (name, method): difference.mean
        for method in data.others
        for name in names
        if (difference := data.difference(method, f"{IOU}{name}")) is not None
    }
    column = f"IoU of {BASELINE}"
    ious = {
        (name, column): float(np.mean(list(values)))
        for name in names
        if (values := by_cell(data.runs(BASELINE), f"{IOU}{name}").values())
    }
    rows = [name for name, _ in ious]
    columns = [method for method in data.others if any(key[1] == method for key in gains)]
    tables = [("", HeatTable(rows, columns, gains, full=2 * LARGE_GAIN)), ("", HeatTable(rows, [column], ious))]
    lead = f"Mean gain in IoU over {BASELINE}, in points, over the pairs whose target has the class."
    return Section("classes", "Classes", lead, [Figures(tables)] if gains else [])
