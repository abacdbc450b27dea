"""Lines: mIoU by the value of a swept key and by the amount of labels, and the loss during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tmt_d2.experiments.results import Pair
from tmt_d2.experiments.statistics import spread
from tmt_d2.projects.report.charts import Chart, Series
from tmt_d2.projects.report.data import MIOU, ReportData
from tmt_d2.projects.report.elements import Block, Figures, Legend, Note, Section

FEWEST = 3  # records of a run that make a curve
_Values = dict[str, dict[Any, dict[tuple[Pair, int], float]]]  # method, value of a setting, cell: mIoU


def sweeps(data: ReportData) -> Section:
    parts = []
    swept = data.results.swept
    several = len({run.labels for run in swept}) > 1
    for name, labels in sorted({(run.about["sweep"], run.labels) for run in swept}):
        runs = [run for run in swept if run.about["sweep"] == name and run.labels == labels]
        key = runs[0].about["key"]
        values: _Values = {}
        methods = {run.method for run in runs}
        fixed = [run for run in data.results.fine_tuned if run.method in methods and run.labels == labels]
        for run in [*runs, *fixed]:
            value = run.about["value"] if "value" in run.about else run.setting(key)
            value = tuple(value) if isinstance(value, list) else value
            values.setdefault(run.method, {}).setdefault(value, {})[run.cell] = run.values[MIOU]
        order = sorted({value for each in values.values() for value in each})
        is_number = len(order) > 1 and all(isinstance(value, (int, float)) for value in order)
        place = {value: float(value) if is_number else float(index) for index, value in enumerate(order)}
        series = _series(data, values, place)
        if series:
            x_ticks = () if is_number else [(place[value], str(value)) for value in order]
            heading = f"{key}, {labels}" if several or labels != data.labels else key
            parts.append((heading, Chart(series, name, "mIoU", x_ticks=x_ticks, has_legend=True)))
    lead = "Mean over the pairs and seeds that have every value; the band is ± one standard deviation over seeds."
    return Section("sweeps", "Sweeps", lead, [Figures(parts)] if parts else [])


def few_labels(data: ReportData) -> Section:
    values: _Values = {}
    amounts = [labels for labels in data.amounts if not labels.listed]
    are_shares = all(labels.fraction for labels in amounts)
    for run in data.results.fine_tuned:
        if not run.labels.listed:
            by_cell = values.setdefault(run.method, {}).setdefault(run.labels, {})
            by_cell[run.cell] = run.values[MIOU]
    place = {labels: float(index) for index, labels in enumerate(reversed(amounts))}
    series = _series(data, values, place) if len(amounts) > 1 else []
    x_ticks = [(place[labels], f"{labels.fraction:.3g}" if are_shares else str(labels)) for labels in amounts]
    x_label = "share of labels" if are_shares else "labels of the target"
    chart = Chart(series, x_label, "mIoU", x_ticks=x_ticks, has_legend=True)
    lead = "mIoU by the number of labeled target images; the band is ± one standard deviation over seeds."
    return Section("labels", "Few labels", lead, [chart] if series else [])


def training(data: ReportData) -> Section:
    parts, few = [], []
    for pair in data.pairs:
        logs = {method: [run.log() for run in data.runs(method) if run.pair == pair] for method in data.methods}
        logs = {method: each for method, each in logs.items() if each and all(each)}
        terms = shared_terms([line for each in logs.values() for log in each for line in log])
        series = []
        for method, each in logs.items():
            steps = [*zip(*each)]  # as many as the shortest log has
            if len(steps) < FEWEST:
                few.append(f"{method}, {' → '.join(pair)}")
                continue
            losses = [float(np.mean([sum(line[term] for term in terms) for line in lines])) for lines in steps]
            series.append(Series(method, data.colors[method], [lines[0]["iteration"] for lines in steps], losses))
        if series:
            parts.append((" → ".join(pair), Chart(series, "iteration", "loss", "small")))
    blocks: list[Block] = [Note(f"Too few records for a curve: {'; '.join(few)}.")] if few else []
    blocks += [Legend([*data.colors.items()]), Figures(parts)] if parts else []
    lead = "Loss during fine-tuning, smoothed: the sum of the terms that all methods of a pair have."
    return Section("curves", "Training", lead, blocks)


def shared_terms(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss terms that every line of the logs has, so that methods with terms of their own can be compared."""
    names = set.intersection(*({*line} for line in lines)) if lines else set()
    return sorted(name for name in names if name.startswith("loss_")) or ["total_loss"]


def _series(data: ReportData, values: _Values, place: Mapping[Any, float]) -> list[Series]:
    """Mean over the (pair, seed) that have every value, by method; spread over seeds of their mean over pairs.

    place: of each value on the x axis.
    """
    series = []
    for method in sorted(values):
        complete = sorted(set.intersection(*(set(cells) for cells in values[method].values())))
        if not complete:
            continue
        x, y, band = [], [], []
        for value, cells in sorted(values[method].items(), key=lambda item: place[item[0]]):
            by_seed: dict[int, list[float]] = {}
            for cell in complete:
                by_seed.setdefault(cell[1], []).append(cells[cell])
            mean, deviation = spread([float(np.mean(each)) for each in by_seed.values()])
            x.append(place[value])
            y.append(mean)
            if deviation is not None:
                band.append((mean - deviation, mean + deviation))
        series.append(Series(method, data.colors[method], x, y, band))
    return series
