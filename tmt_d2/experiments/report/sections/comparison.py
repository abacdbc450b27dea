"""The paper's table: pairs by methods, a tab for each metric and share of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from tmt_d2.experiments.report.markup import NOTHING, Section, scrolling, table, table_row, tabs
from tmt_d2.experiments.report.paper import paper_miou
from tmt_d2.experiments.report.results import BASELINE, METRICS, Pair, by_pair
from tmt_d2.experiments.report.statistics import Difference
from tmt_d2.experiments.report.tables import cell_text
from tmt_d2.experiments.report.view import MIOU, View, share

FROM_PAPER = (BASELINE, "tmt")


def results_table(view: View) -> Section:
    lead = "In percent; mean"
    lead += " ± standard deviation over seeds" if len(view.results.seeds()) > 1 else ", one seed"
    lead += f". Below each value its difference to {BASELINE}, over the seeds that both have; the largest is bold."
    partial = [method for method in view.others if not view.is_complete(method)]
    if partial:
        lead += f" <b>Not run wherever {BASELINE} was: {escape(', '.join(partial))}</b>; of these compare differences, not means."
    if _paper(view):
        lead += (
            " <i>Paper</i>: the figure of arXiv 2504.05774 for the pair of that name; other models, budgets and, with "
            "embedded scenes, other images: to be compared in direction only."
        )
    missing = [method for method in ("leep", "otce") if method in view.methods]
    if missing:
        lead += f" {' and '.join(missing)} are our reading of methods that are not published in full."
    panes = []
    for fraction in view.fractions or [1.0]:
        for metric in METRICS:
            label = metric if len(view.fractions) < 2 else f"{metric}, {share(fraction)}"
            panes.append((label, _table(view, metric, fraction)))
    return Section("table", "Results", lead, tabs("table", panes))


def _paper(view: View) -> dict[Pair, dict[str, float]]:
    return {pair: values for pair, values in paper_miou().items() if pair in view.pairs}


def _table(view: View, metric: str, fraction: float) -> str:
    values = {method: by_pair(view.runs(method, fraction), metric) for method in view.methods}
    before = by_pair(view.results.evaluation, metric)
    paper = _paper(view) if metric == MIOU else {}
    columns = ["source → target", "before", *view.methods]
    if paper:
        columns += [f"paper: {name}" for name in FROM_PAPER]
    gains = {method: view.gains(method, metric, fraction) for method in view.methods}
    rows = []
    for pair in view.pairs:
        cells = [f"<td>{cell_text(before.get(pair, []))}</td>"]
        cells += _method_cells(
            {method: values[method].get(pair, []) for method in view.methods},
            {method: gains[method][pair] for method in view.methods if pair in gains[method]},
        )
        if paper:
            cells += [f"<td>{paper[pair][name] if pair in paper else ''}</td>" for name in FROM_PAPER]
        rows.append(table_row(" → ".join(pair), cells))
    total = [_mean_cell(before.values())]
    for method in view.methods:
        found = None if method == BASELINE else view.difference(method, metric, fraction)
        total.append(_mean_cell(values[method].values(), _interval(found)))
    if paper:
        total += [f"<td>{np.mean([row[name] for row in paper.values()]):.1f}</td>" for name in FROM_PAPER]
    rows.append(table_row("mean", total, ' class="total"'))
    return scrolling(table(columns, rows))


def _method_cells(values: dict[str, list[float]], gains: dict[str, float]) -> list[str]:
    """values: of one pair, over seeds, by method; gains: over the baseline, whose own is 0."""
    cells = []
    for method, found in values.items():
        best = len(gains) > 1 and method in gains and gains[method] == max(gains.values())
        gain = f"<small>{gains[method]:+.1f}</small>" if method in gains and method != BASELINE else ""
        cells.append(f"<td{' class=best' if best else ''}>{cell_text(found) or NOTHING}{gain}</td>")
    return cells


def _mean_cell(values: Iterable[Sequence[float]], below: str = "") -> str:
    found = [value for each in values for value in each]
    return f"<td>{f'{np.mean(found):.1f}' if found else NOTHING}{below}</td>"


def _interval(found: Difference | None) -> str:
    if found is None:
        return ""
    if found.low is None:
        return f"<small>{found.mean:+.1f}</small>"
    kind = "even" if not found.is_clear or abs(found.mean) < 0.05 else "up" if found.mean > 0 else "down"
    mean = f'<span class="{kind}">{found.mean:+.1f}</span>'
    return f"<small>{mean}</small><small>[{found.low:+.1f}, {found.high:+.1f}]</small>"
