"""What each method gains over the baseline: over all pairs with intervals, by source and target, and by class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tmt_d2.adaptation.methods import BASELINE, METHODS
from tmt_d2.experiments.results import IOU, Pair, Run, by_cell, by_pair, classes_of
from tmt_d2.experiments.statistics import spread
from tmt_d2.projects.report.charts import HeatTable, IntervalChart
from tmt_d2.projects.report.sections import Section
from tmt_d2.projects.report.view import MIOU, View

LARGE_GAIN = 3.0  # points that have the full colour: the same for every method, so that noise stays pale


def differences(view: View) -> Section:
    panes = []
    for labels in view.amounts:
        by_method = {method: view.difference(method, labels=labels) for method in view.others}
        rows = [(method, difference) for method, difference in by_method.items() if difference is not None]
        if rows:
            # What trains only a part of the model loses so much that it would set the scale.
            charted = [row for row in rows if row[0] not in METHODS or not METHODS[row[0]].trains] or rows
            chart = IntervalChart(charted, f"points of mIoU, minus {BASELINE}")
            panes.append((str(labels), {"chart": chart, "rows": rows}))
    return Section("differences", f"Minus {BASELINE}", {"panes": panes} if panes else {})


def heat_maps(view: View) -> Section:
    sources = sorted({pair[0] for pair in view.pairs})
    targets = sorted({pair[1] for pair in view.pairs})

    def by_place(values: Mapping[Pair, float], full: float | None = None) -> HeatTable:
        return HeatTable(sources, targets, values, corner="source ↓  target →", full=full)

    parts = [("before fine-tuning", by_place(_means(view.results.evaluation)))]
    parts.append((BASELINE, by_place(_means(view.runs(BASELINE)))))
    parts += [(f"{method} minus {BASELINE}", by_place(view.gains(method), LARGE_GAIN)) for method in view.others]
    parts = [(caption, table) for caption, table in parts if table.values]
    return Section("heat", "Source by target", {"parts": parts} if len(view.pairs) > 1 and parts else {})


def _means(runs: list[Run]) -> dict[Pair, float]:
    return {pair: spread(values)[0] for pair, values in by_pair(runs, MIOU).items()}


def classes(view: View) -> Section:
    names = classes_of(view.runs(BASELINE))
    gains = {
        (name, method): difference.mean
        for method in view.others
        for name in names
        if (difference := view.difference(method, f"{IOU}{name}")) is not None
    }
    if not gains:
        return Section("classes", "Classes", {})
    column = f"IoU of {BASELINE}"
    ious = {
        (name, column): float(np.mean(list(values)))
        for name in names
        if (values := by_cell(view.runs(BASELINE), f"{IOU}{name}").values())
    }
    rows = [name for name, _ in ious]
    columns = [method for method in view.others if any(key[1] == method for key in gains)]
    tables = [HeatTable(rows, columns, gains, full=2 * LARGE_GAIN), HeatTable(rows, [column], ious)]
    return Section("classes", "Classes", {"tables": tables})
