"""Head of the page: the result in one sentence, and a row of numbers."""

from __future__ import annotations

import numpy as np

from tmt_d2.adaptation import BASELINE, OURS
from tmt_d2.experiments.results import by_cell
from tmt_d2.projects.report.data import MIOU, ReportData


def verdict(data: ReportData) -> str:
    """The gain of TMT, or else of the first method, over the baseline, if one has been shown."""
    pairs, seeds = len(data.pairs), len(data.results.seeds())
    text = f"{pairs} pair{'s' if pairs != 1 else ''}, {seeds} seed{'s' if seeds != 1 else ''}, {data.labels}. "
    method = OURS if OURS in data.others else (data.others[0] if data.others else "")
    difference = data.difference(method) if method else None
    if difference is None:
        return text + "No two methods to compare yet."
    runs = f"{difference.n} run{'s' if difference.n != 1 else ''} each"
    text += f"{method} minus {BASELINE}, {runs}: {difference.mean:+.2f} points of mIoU"
    if difference.low is None:
        return text + ", from too few runs for an interval."
    text += f", 95 % interval {difference.low:+.2f} to {difference.high:+.2f}: "
    if not difference.is_clear:
        return text + "no difference has been shown."
    return text + ("a gain." if difference.mean > 0 else "a loss.")


def tiles(data: ReportData) -> list[tuple[str, str]]:
    """(number, caption): runs, time, and the mean of each method that was run wherever the baseline was."""
    results = data.results
    hours = sum(run.seconds for kind in vars(results).values() for run in kind) / 3600
    numbers = [(str(len(results.fine_tuned) + len(results.swept)), "fine-tuned models")]
    numbers += [(str(len(results.source)), "source models"), (f"{hours:.1f} h", "of computing")]
    for method in data.methods:
        values = by_cell(data.runs(method), MIOU).values()
        if values and data.is_complete(method):
            numbers.append((f"{np.mean(list(values)):.1f}", f"mean mIoU, {method}"))
    return numbers
