"""The paper's table: pairs by methods, a tab for each metric and amount of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup

from tmt_d2.adaptation import BASELINE, OURS, TASKS, Task
from tmt_d2.adaptation.alignment import Leep
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.experiments.results import ALL, Labels, by_pair
from tmt_d2.experiments.statistics import Difference
from tmt_d2.projects.report.data import MIOU, ReportData
from tmt_d2.projects.report.elements import NOTHING, Cell, Section, Table, TableRow, Tabs
from tmt_d2.projects.report.paper import paper_miou
from tmt_d2.projects.report.tables import cell_text

FROM_PAPER = (BASELINE, OURS)


def results_table(data: ReportData) -> Section:
    panes = []
    for labels in data.amounts or [ALL]:
        for metric in METRICS if not labels.listed else (MIOU,):
            label = metric if len(data.amounts) < 2 else f"{metric}, {labels}"
            panes.append((label, [_table(data, metric, labels)]))
    return Section("table", "Results", _lead(data), [Tabs("table", panes)])


def _lead(data: ReportData) -> Markup:
    spread = "mean ± standard deviation over seeds" if len(data.results.seeds()) > 1 else "one seed"
    lead = Markup(
        "In percent; {}. Below each value its difference to {}, over the seeds that both have. Bold: a gain over all "
        "pairs whose interval lies above 0."
    ).format(spread, BASELINE)
    partial = [method for method in data.others if not data.is_complete(method)]
    if partial:
        text = " <b>Not run wherever {} was: {}</b>; compare the differences of these, not their means."
        lead += Markup(text).format(BASELINE, ", ".join(partial))
    if paper_miou().keys() & {*data.pairs}:
        lead += Markup(
            " <i>Paper</i>: arXiv 2504.05774 for the pair of that name, with other models, budgets and, for rendered "
            "scenes, other images: compare the direction only."
        )
    unpublished = [name for name in data.methods if issubclass(TASKS.get(name, Task), Leep)]
    if unpublished:
        lead += Markup(" {} follow our reading of methods that are not published in full.").format(
            " and ".join(unpublished)
        )
    return lead


def _table(data: ReportData, metric: str, labels: Labels) -> Table:
    before = by_pair(data.results.evaluation, metric)
    values = {method: by_pair(data.runs(method, labels), metric) for method in data.methods}
    gains = {method: data.gains(method, metric, labels) for method in data.others}
    paper = {pair: row for pair, row in paper_miou().items() if pair in data.pairs and metric == MIOU}
    from_paper = FROM_PAPER if paper else ()
    rows = []
    for pair in data.pairs:
        cells = [Cell(cell_text(before.get(pair, [])))]
        for method in data.methods:
            gain = gains.get(method, {}).get(pair)
            text = cell_text(values[method].get(pair, [])) or NOTHING
            cells.append(Cell(text, "" if gain is None else f"{gain:+.1f}"))
        cells += [Cell(f"{paper[pair][name]}" if pair in paper else "") for name in from_paper]
        rows.append(TableRow(" → ".join(pair), cells))
    total = [Cell(_mean(before.values()))]
    for method in data.methods:
        difference = None if method == BASELINE else data.difference(method, metric, labels)
        total.append(difference_cell(_mean(values[method].values()), difference))
    total += [Cell(_mean([[row[name] for row in paper.values()]])) for name in from_paper]
    columns = ["source → target", "before", *data.methods, *(f"paper: {name}" for name in from_paper)]
    return Table(columns, [*rows, TableRow("mean", total, is_total=True)])


def difference_cell(mean: str, difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(mean)
    text = f"{difference.mean:+.1f}"
    if difference.low is None:
        return Cell(mean, text)
    trend = ("up" if difference.mean > 0 else "down") if difference.is_clear else ""
    return Cell(mean, text, f"[{difference.low:+.1f}, {difference.high:+.1f}]", trend)


def _mean(values: Iterable[Sequence[float]]) -> str:
    """Mean of all values of all pairs."""
    numbers = [value for each in values for value in each]
    return f"{np.mean(numbers):.1f}" if numbers else NOTHING
