"""Lines: mIoU by the value of a swept key and by the share of labels, and the loss during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tmt_d2.experiments.report.charts import Series, legend, line_chart
from tmt_d2.experiments.report.markup import Section, figure, side_by_side
from tmt_d2.experiments.report.results import Pair, curve, setting
from tmt_d2.experiments.report.statistics import spread
from tmt_d2.experiments.report.view import MIOU, View

_Points = dict[str, dict[Any, dict[tuple[Pair, int], float]]]  # method, value of a setting, cell: mIoU


def sweeps(view: View) -> Section:
    parts = []
    for name in sorted({run.about["sweep"] for run in view.results.swept}):
        runs = [run for run in view.results.swept if run.about["sweep"] == name]
        key = runs[0].about["key"]
        points: _Points = {}
        methods = {run.method for run in runs}
        fixed = [run for run in view.results.fine_tuned if run.method in methods]
        for run in [*runs, *fixed]:
            if run.about["label_fraction"] == view.fraction:
                value = run.about["value"] if "value" in run.about else setting(run, key)
                value = tuple(value) if isinstance(value, list) else value
                points.setdefault(run.method, {}).setdefault(value, {})[run.cell] = run.values[MIOU]
        order = sorted({value for each in points.values() for value in each})
        number = all(isinstance(value, (int, float)) for value in order)
        place = {value: float(value) if number else float(index) for index, value in enumerate(order)}
        chart = _chart(view, points, place, name, None if number else [(place[v], str(v)) for v in order])
        if chart:
            parts.append(figure(key, chart))
    lead = "Mean over the pairs and seeds that have every value; the band is ± one standard deviation over seeds."
    return Section("sweeps", "Sweeps", lead, side_by_side(parts))


def few_labels(view: View) -> Section:
    points: _Points = {}
    for run in view.results.fine_tuned:
        values = points.setdefault(run.method, {}).setdefault(run.about["label_fraction"], {})
        values[run.cell] = run.values[MIOU]
    place = {fraction: float(np.log2(fraction)) for fraction in view.fractions}
    x_ticks = [(place[fraction], f"{fraction:.3g}") for fraction in view.fractions]
    chart = _chart(view, points, place, "share of labels", x_ticks) if len(view.fractions) > 1 else ""
    lead = (
        "mIoU by the share of the target's labelled training images; the band is ± one standard deviation over seeds."
    )
    return Section("labels", "Few labels", lead, chart)


def training(view: View) -> Section:
    charts = []
    for pair in view.pairs:
        series = []
        for method in view.methods:
            lines = [curve(run, "total_loss") for run in view.runs(method) if run.pair == pair]
            if lines and all(lines):
                length = min(map(len, lines))
                mean = np.mean([[value for _, value in line[:length]] for line in lines], axis=0)
                series.append(Series(method, [(lines[0][i][0], float(mean[i])) for i in range(length)]))
        if series:
            chart = line_chart(
                series, "iteration", "loss", colours=view.colours, width=250, height=150, small=True, markers=False
            )
            charts.append(figure(" → ".join(pair), chart))
    lead = "Loss during fine-tuning, smoothed, one line per method."
    return Section(
        "curves", "Training", lead, legend(view.methods, view.colours) + side_by_side(charts) if charts else ""
    )


def _chart(
    view: View,
    points: _Points,
    place: Mapping[Any, float],
    x_label: str,
    x_ticks: Sequence[tuple[float, str]] | None,
) -> str:
    """Per method the mean over the (pair, seed) that have every value; spread over seeds of their mean over pairs.

    place: of each value on the x axis.
    """
    series = []
    for method in sorted(points):
        complete = sorted(set.intersection(*(set(cells) for cells in points[method].values())))
        if not complete:
            continue
        found = []
        for value, cells in points[method].items():
            by_seed: dict[int, list[float]] = {}
            for cell in complete:
                by_seed.setdefault(cell[1], []).append(cells[cell])
            found.append((place[value], *spread([float(np.mean(each)) for each in by_seed.values()])))
        found.sort()
        band = [(x, mean - deviation, mean + deviation) for x, mean, deviation in found if deviation is not None]
        series.append(Series(method, [(x, mean) for x, mean, _ in found], band))
    if not series:
        return ""
    drawn = line_chart(series, x_label, "mIoU", colours=view.colours, x_ticks=x_ticks)
    return legend([each.name for each in series], view.colours) + drawn
