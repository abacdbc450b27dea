"""What stands above all sections: the verdict in one sentence, and a row of figures."""

from __future__ import annotations

import numpy as np

from tmt_d2.adaptation.methods import BASELINE, OURS
from tmt_d2.experiments.results import by_cell
from tmt_d2.projects.report.view import MIOU, View


def verdict(view: View) -> str:
    """Whether TMT, or else the first method, gains over the baseline, or that it has not been shown."""
    pairs, seeds = len(view.pairs), len(view.results.seeds())
    text = f"{pairs} pair{'s' if pairs != 1 else ''}, {seeds} seed{'s' if seeds != 1 else ''}, {view.labels}. "
    method = OURS if OURS in view.others else (view.others[0] if view.others else "")
    difference = view.difference(method) if method else None
    if difference is None:
        return text + "No two methods to compare yet."
    of = f"{difference.n} run{'s' if difference.n != 1 else ''} each"
    text += f"{method} minus {BASELINE}, {of}: {difference.mean:+.2f} points of mIoU"
    if difference.low is None:
        return text + ", from too few runs for an interval."
    text += f", 95 % interval {difference.low:+.2f} to {difference.high:+.2f}: "
    if not difference.is_clear:
        return text + "no difference has been shown."
    return text + ("a gain." if difference.mean > 0 else "a loss.")


def tiles(view: View) -> list[tuple[str, str]]:
    """(figure, what it is): how much was run, and the mean of each method that was run wherever the baseline was."""
    results = view.results
    hours = sum(run.seconds for kind in vars(results).values() for run in kind) / 3600
    figures = [(str(len(results.fine_tuned) + len(results.swept)), "fine-tuned models")]
    figures += [(str(len(results.source)), "source models"), (f"{hours:.1f} h", "of computing")]
    for method in view.methods:
        values = by_cell(view.runs(method), MIOU).values()
        if values and view.is_complete(method):
            figures.append((f"{np.mean(list(values)):.1f}", f"mean mIoU, {method}"))
    return figures
