"""The paper's table: pairs by methods, a tab for each metric and amount of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tmt_d2.adaptation.methods import BASELINE, METHODS, OURS
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.experiments.records import ALL, Labels
from tmt_d2.experiments.results import Pair, by_pair
from tmt_d2.experiments.statistics import Difference
from tmt_d2.projects.report.paper import paper_miou
from tmt_d2.projects.report.sections import NOTHING, Cell, Row, Section, Table
from tmt_d2.projects.report.tables import cell_text
from tmt_d2.projects.report.view import MIOU, View

FROM_PAPER = (BASELINE, OURS)


def results_table(view: View) -> Section:
    panes = []
    for labels in view.amounts or [ALL]:
        for metric in METRICS if not labels.listed else (MIOU,):  # of lists there are many
            label = metric if len(view.amounts) < 2 else f"{metric}, {labels}"
            panes.append((label, _table(view, metric, labels)))
    values = {
        "panes": panes,
        "has_spread": len(view.results.seeds()) > 1,
        "has_paper": bool(_paper(view)),
        "partial": [method for method in view.others if not view.is_complete(method)],
        "unpublished": [name for name in view.methods if name in METHODS and METHODS[name].raises],
    }
    return Section("table", "Results", values)


def _paper(view: View) -> dict[Pair, dict[str, float]]:
    return {pair: values for pair, values in paper_miou().items() if pair in view.pairs}


def _table(view: View, metric: str, labels: Labels) -> Table:
    values = {method: by_pair(view.runs(method, labels), metric) for method in view.methods}
    gains = {method: view.gains(method, metric, labels) for method in view.methods}
    before = by_pair(view.results.evaluation, metric)
    paper = _paper(view) if metric == MIOU else {}
    from_paper = FROM_PAPER if paper else ()
    rows = []
    for pair in view.pairs:
        cells = [Cell(cell_text(before.get(pair, [])))]
        cells += _method_cells(
            {method: values[method].get(pair, []) for method in view.methods},
            {method: gains[method][pair] for method in view.methods if pair in gains[method]},
        )
        cells += [Cell(f"{paper[pair][name]}" if pair in paper else "") for name in from_paper]
        rows.append(Row(" → ".join(pair), cells))
    total = [Cell(_mean(before.values()))]
    for method in view.methods:
        difference = None if method == BASELINE else view.difference(method, metric, labels)
        total.append(difference_cell(_mean(values[method].values()), difference))
    total += [Cell(_mean([[row[name] for row in paper.values()]])) for name in from_paper]
    columns = ["source → target", "before", *view.methods, *(f"paper: {name}" for name in from_paper)]
    return Table(columns, [*rows, Row("mean", total, is_total=True)])


def _method_cells(values: Mapping[str, list[float]], gains: Mapping[str, float]) -> list[Cell]:
    """values: of one pair, over seeds, by method; gains: over the baseline, whose own is 0."""
    return [
        Cell(
            cell_text(over_seeds) or NOTHING,
            f"{gains[method]:+.1f}" if method in gains and method != BASELINE else "",
        )
        for method, over_seeds in values.items()
    ]


def difference_cell(mean: str, difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(mean)
    text = f"{difference.mean:+.1f}"
    if difference.low is None:
        return Cell(mean, text)
    is_even = not difference.is_clear or abs(difference.mean) < 0.05
    trend = "even" if is_even else "up" if difference.mean > 0 else "down"
    return Cell(mean, text, f"[{difference.low:+.1f}, {difference.high:+.1f}]", trend, is_best=trend == "up")


def _mean(values: Iterable[Sequence[float]]) -> str:
    """Of all values of all pairs."""
    numbers = [value for each in values for value in each]
    return f"{np.mean(numbers):.1f}" if numbers else NOTHING
