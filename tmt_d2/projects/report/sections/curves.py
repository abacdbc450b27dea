"""Lines: mIoU by the value of a swept key and by the amount of labels, and the loss during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tmt_d2.experiments.records import Labels
from tmt_d2.experiments.results import Pair, log_of, setting
from tmt_d2.experiments.statistics import spread
from tmt_d2.projects.report.charts import Chart, Point, Series
from tmt_d2.projects.report.sections import Section
from tmt_d2.projects.report.view import MIOU, View

FEWEST = 3  # records of a run that make a curve
_Values = dict[str, dict[Any, dict[tuple[Pair, int], float]]]  # method, value of a setting, cell: mIoU


def sweeps(view: View) -> Section:
    parts = []
    swept = view.results.swept
    several = len({run.labels for run in swept}) > 1
    for name, labels in sorted({(run.about["sweep"], run.labels) for run in swept}):
        runs = [run for run in swept if run.about["sweep"] == name and run.labels == labels]
        key = runs[0].about["key"]
        values: _Values = {}
        methods = {run.method for run in runs}
        fixed = [run for run in view.results.fine_tuned if run.method in methods and run.labels == labels]
        for run in [*runs, *fixed]:
            value = run.about["value"] if "value" in run.about else setting(run, key)
            value = tuple(value) if isinstance(value, list) else value
            values.setdefault(run.method, {}).setdefault(value, {})[run.cell] = run.values[MIOU]
        order = sorted({value for each in values.values() for value in each})
        number = len(order) > 1 and all(isinstance(value, (int, float)) for value in order)
        place = {value: float(value) if number else float(index) for index, value in enumerate(order)}
        series = _series(view, values, place)
        if series:
            x_ticks = () if number else [(place[value], str(value)) for value in order]
            heading = f"{key}, {labels}" if several or labels != view.labels else key
            parts.append((heading, Chart(series, name, "mIoU", x_ticks=x_ticks)))
    return Section("sweeps", "Sweeps", {"parts": parts} if parts else {})


def few_labels(view: View) -> Section:
    values: _Values = {}
    amounts = [labels for labels in view.amounts if not labels.listed]
    shares = all(labels.fraction for labels in amounts)
    for run in view.results.fine_tuned:
        if not run.labels.listed:
            by_cell = values.setdefault(run.method, {}).setdefault(run.labels, {})
            by_cell[run.cell] = run.values[MIOU]
    place = _places(amounts)
    series = _series(view, values, place) if len(amounts) > 1 else []
    x_ticks = [(place[labels], f"{labels.fraction:.3g}" if shares else str(labels)) for labels in amounts]
    chart = Chart(series, "share of labels" if shares else "labels of the target", "mIoU", x_ticks=x_ticks)
    return Section("labels", "Few labels", {"chart": chart} if series else {})


def _places(amounts: Sequence[Labels]) -> dict[Labels, float]:
    """On a logarithmic axis; numbers and shares, of which nobody knows how many they are, two steps apart."""
    shares = {labels: float(np.log2(labels.fraction)) for labels in amounts if labels.fraction}
    numbers = {labels: float(np.log2(labels.count + 1)) for labels in amounts if not labels.fraction}
    behind = max(numbers.values(), default=0.0) - min(shares.values(), default=0.0) + 2 if numbers else 0.0
    return numbers | {labels: place + behind for labels, place in shares.items()}


def training(view: View) -> Section:
    parts, few = [], []
    for pair in view.pairs:
        logs = {method: [log_of(run) for run in view.runs(method) if run.pair == pair] for method in view.methods}
        logs = {method: each for method, each in logs.items() if each and all(each)}
        terms = shared_terms([line for each in logs.values() for log in each for line in log])
        series = []
        for method, each in logs.items():
            points = [
                Point(lines[0]["iteration"], float(np.mean([sum(line[term] for term in terms) for line in lines])))
                for lines in zip(*each)  # as far as the shortest goes
            ]
            if len(points) < FEWEST:
                few.append(f"{method}, {' → '.join(pair)}")
                continue
            series.append(Series(method, view.colours[method], points))
        if series:
            parts.append((" → ".join(pair), Chart(series, "iteration", "loss", kind="small")))
    keys = [(method, view.colours[method]) for method in view.methods]
    return Section("curves", "Training", {"keys": keys, "parts": parts, "few": few} if parts or few else {})


def shared_terms(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss terms that every line of the logs has, so that methods with terms of their own can be compared."""
    names = set.intersection(*({*line} for line in lines)) if lines else set()
    return sorted(name for name in names if name.startswith("loss_")) or ["total_loss"]


def _series(view: View, values: _Values, place: Mapping[Any, float]) -> list[Series]:
    """Per method the mean over the (pair, seed) that have every value; spread over seeds of their mean over pairs.

    place: of each value on the x axis.
    """
    series = []
    for method in sorted(values):
        complete = sorted(set.intersection(*(set(cells) for cells in values[method].values())))
        if not complete:
            continue
        points, band = [], []
        for value, cells in sorted(values[method].items(), key=lambda item: place[item[0]]):
            by_seed: dict[int, list[float]] = {}
            for cell in complete:
                by_seed.setdefault(cell[1], []).append(cells[cell])
            x = place[value]
            mean, deviation = spread([float(np.mean(each)) for each in by_seed.values()])
            points.append(Point(x, mean, f"{method}: {mean:.2f} at {x:g}"))
            if deviation is not None:
                band.append((x, mean - deviation, mean + deviation))
        series.append(Series(method, view.colours[method], points, band))
    return series
