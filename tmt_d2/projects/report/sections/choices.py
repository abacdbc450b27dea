"""Lists of images to label, compared with as many images drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from tmt_d2.experiments.results import Labels, Run, by_cell
from tmt_d2.experiments.statistics import Difference, paired_difference
from tmt_d2.projects.report.charts import IntervalChart
from tmt_d2.projects.report.data import MIOU, ReportData
from tmt_d2.projects.report.elements import NOTHING, Cell, Section, Table, TableRow, Tabs
from tmt_d2.projects.report.sections.comparison import difference_cell

COLUMNS = ("pair, labels, method", "chosen", "runs", "mean", "lowest", "highest", "minus random")
DRAW = "TRANSFER.LABEL_SEED"
LEAD = Markup(
    "mIoU with the labeled images of a list, and with as many images drawn at random, trained alike. Each draw counts "
    "once, as the mean of its seeds. The difference is to the mean of the draws with the same seed, with its 95 % t "
    "interval over seeds, from two on; gray includes 0. <b>A list is one choice</b>: no interval says how well other "
    "lists of its strategy would do, and draws that were trained on with one seed each differ by that, too."
)


def chosen_labels(data: ReportData) -> Section:
    rows: list[TableRow] = []
    panes = []
    lists = [labels for labels in data.amounts if labels.listed]
    groups = [
        (pair, count, method)
        for pair in data.pairs
        for count in sorted({each.count for each in lists})
        for method in data.methods
    ]
    for pair, count, method in groups:
        amount = Labels(0.0, count)
        named = {
            each.listed: [run for run in data.runs(method, each) if run.pair == pair]
            for each in lists
            if each.count == count
        }
        named = {name: runs for name, runs in named.items() if runs}
        drawn = [
            run
            for run in [*data.runs(method, amount), *data.results.swept]
            if (run.pair, run.method, run.labels) == (pair, method, amount) and run.about.get("key", DRAW) == DRAW
        ]
        if named:
            caption = f"{' → '.join(pair)}, {amount}, {method}"
            added, differences = _group(named, drawn)
            rows += [TableRow(caption, cells) for cells in added]
            if differences:
                panes.append((caption, [IntervalChart(differences, "points of mIoU, minus the mean at random")]))
    return Section("chosen", "Chosen labels", LEAD, [Table(COLUMNS, rows), Tabs("chosen", panes)] if rows else [])


def _group(
    named: Mapping[str, Sequence[Run]], drawn: Sequence[Run]
) -> tuple[list[list[Cell]], list[tuple[str, Difference]]]:
    """Cells of the table and differences of the chart for one pair, number of labels and method.

    named: runs by list. drawn: runs of random draws.
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
        name = f"at random, {len(means)} draw{'s' if len(means) > 1 else ''}"
        mean = float(np.mean(means))
        rows.append(_cells(name, len(drawn), means, Cell("")))
        differences.append((name, Difference(0.0, None, None, len(means), [each - mean for each in means])))
    for name, runs in sorted(named.items()):
        values = by_cell(runs, MIOU)
        difference = paired_difference(values, baseline, fewest=2)
        cell = Cell(NOTHING) if difference is None else difference_cell("", difference)
        rows.append(_cells(name, len(runs), [*values.values()], cell))
        if difference is not None:
            differences.append((name, difference))
    return rows, differences


def _cells(chosen: str, runs: int, values: Sequence[float], last: Cell) -> list[Cell]:
    numbers = (float(np.mean(values)), min(values), max(values))
    return [Cell(chosen), Cell(str(runs)), *(Cell(f"{number:.1f}") for number in numbers), last]


def _draw(run: Run) -> int:
    """The seed that the labeled images were drawn by."""
    seed = run.about["value"] if "value" in run.about else run.setting(DRAW)
    return seed if seed >= 0 else run.about["seed"]
