"""What lists of pictures to label are worth, beside as many pictures drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tmt_d2.experiments.records import Labels
from tmt_d2.experiments.results import Run, by_cell, setting
from tmt_d2.experiments.statistics import Difference, paired_difference
from tmt_d2.projects.report.charts import IntervalChart
from tmt_d2.projects.report.sections import NOTHING, Cell, Row, Section, Table
from tmt_d2.projects.report.sections.comparison import difference_cell
from tmt_d2.projects.report.view import MIOU, View

COLUMNS = ("pair, labels, method", "chosen", "runs", "mean", "lowest", "highest", "minus random")
DRAW = "TRANSFER.LABEL_SEED"
RANDOM = "at random"


def chosen_labels(view: View) -> Section:
    rows: list[Row] = []
    panes = []
    lists = [labels for labels in view.amounts if labels.listed]
    for pair in view.pairs:
        for count in sorted({labels.count for labels in lists}):
            for method in view.methods:
                named = {
                    labels.listed: runs
                    for labels in lists
                    if labels.count == count
                    and (runs := [run for run in view.runs(method, labels) if run.pair == pair])
                }
                if named:
                    amount = Labels(0.0, count)
                    drawn = [
                        run
                        for run in [*view.runs(method, amount), *view.results.swept]
                        if (run.pair, run.method, run.labels) == (pair, method, amount)
                        and run.about.get("key", DRAW) == DRAW
                    ]
                    caption = f"{' → '.join(pair)}, {amount}, {method}"
                    added, differences = _group(named, drawn)
                    rows += [Row(caption, cells) for cells in added]
                    if differences:
                        panes.append((caption, IntervalChart(differences, f"points of mIoU, minus the mean {RANDOM}")))
    return Section("chosen", "Chosen labels", {"table": Table(COLUMNS, rows), "panes": panes} if rows else {})


def _group(
    named: Mapping[str, Sequence[Run]], drawn: Sequence[Run]
) -> tuple[list[list[Cell]], list[tuple[str, Difference]]]:
    """Cells of the table and differences of the chart for one pair, number of labels and method.

    named: runs by list. drawn: of random draws.
    """
    draws: dict[int, list[float]] = {}
    by_seed: dict[tuple[tuple[str, str], int], list[float]] = {}
    for run in drawn:
        draws.setdefault(_draw(run), []).append(run.values[MIOU])
        by_seed.setdefault(run.cell, []).append(run.values[MIOU])
    means = [float(np.mean(values)) for values in draws.values()]
    baseline = {cell: float(np.mean(values)) for cell, values in by_seed.items()}
    rows, differences = [], []
    if means:
        mean = float(np.mean(means))
        name = f"{RANDOM}, {len(means)} draw{'s' if len(means) > 1 else ''}"
        rows.append(_cells(name, len(drawn), mean, means, Cell("")))
        differences.append((name, Difference(0.0, None, None, len(means), [each - mean for each in means])))
    for name, runs in sorted(named.items()):
        values = by_cell(runs, MIOU)
        difference = paired_difference(values, baseline, fewest=2)
        cell = Cell(NOTHING) if difference is None else difference_cell("", difference)
        numbers = list(values.values())
        rows.append(_cells(name, len(runs), float(np.mean(numbers)), numbers, cell))
        if difference is not None:
            differences.append((name, difference))
    return rows, differences


def _cells(chosen: str, runs: int, mean: float, values: Sequence[float], last: Cell) -> list[Cell]:
    return [Cell(chosen), Cell(str(runs)), *(Cell(f"{value:.1f}") for value in (mean, min(values), max(values))), last]


def _draw(run: Run) -> int:
    """The seed that the labelled pictures were drawn by."""
    seed = run.about["value"] if "value" in run.about else setting(run, DRAW)
    return seed if seed >= 0 else run.about["seed"]
