"""What each method gains over the baseline: over all pairs with intervals, by source and target, and by class."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from ...data.label_spaces import CLASSES
from ..charts import heat_table, interval_chart
from ..html import Section, figure, side_by_side, tabs
from ..results import BASELINE, Pair, Run, by_pair
from ..statistics import spread
from ..view import MIOU, View, share

LARGE_GAIN = 3.0  # points that have the full colour: the same for every method, so that noise stays pale


def differences(view: View) -> Section:
    lead = (
        "Difference in mIoU to full fine-tuning on the same pair with the same seed. Dots are single runs; bars "
        "are 95 % t intervals of the mean over pairs and, from three seeds on, over seeds, which the pairs have in "
        "common; with fewer they hold for these seeds. <b>A grey bar includes 0: no difference has been shown.</b> Pairs "
        "also share sources and targets, which is not accounted for: intervals are rather too narrow than too wide."
    )
    panes = []
    for fraction in view.fractions:
        rows = []
        for method in view.others:
            found = view.difference(method, fraction=fraction)
            if found is not None:
                rows.append((method, found.mean, found.low, found.high, found.values))
        if rows:
            drawn = [row for row in rows if row[0] != "linear"] or rows  # its loss would set the scale
            chart = interval_chart(drawn, f"points of mIoU, minus {BASELINE}")
            items = "; ".join(
                f"{escape(method)} {mean:+.2f}"
                + (f" [{low:+.2f}, {high:+.2f}]" if low is not None else " (no interval)")
                for method, mean, low, high, _ in rows
            )
            panes.append((share(fraction), f'{chart}<p class="note">{items}</p>'))
    return Section("differences", f"Minus {BASELINE}", lead, tabs("differences", panes))


def heat_maps(view: View) -> Section:
    sources = sorted({pair[0] for pair in view.pairs})
    targets = sorted({pair[1] for pair in view.pairs})

    def matrix(values: Mapping[Pair, float], caption: str, diverging: bool = False) -> str:
        if not values:
            return ""
        corner = "source ↓  target →"
        drawn = heat_table(sources, targets, values, corner=corner, diverging=diverging, scale=LARGE_GAIN)
        return figure(caption, drawn)

    parts = [matrix(_means(view.results.evaluation), "before fine-tuning")]
    parts.append(matrix(_means(view.runs(BASELINE)), BASELINE))
    for method in view.others:
        parts.append(matrix(view.gains(method), f"{method} minus {BASELINE}", diverging=True))
    lead = "Mean mIoU in percent; gains are in points, over the seeds that both methods have."
    return Section("heat", "Source by target", lead, side_by_side(parts) if len(view.pairs) > 1 else "")


def _means(runs: list[Run]) -> dict[Pair, float]:
    return {pair: spread(values)[0] for pair, values in by_pair(runs, MIOU).items()}


def classes(view: View) -> Section:
    lead = f"Mean gain in IoU over {BASELINE}, in points, over the pairs whose target has the class."
    gains = {}
    for method in view.others:
        for name in CLASSES:
            found = view.difference(method, f"IoU-{name}")
            if found is not None:
                gains[name, method] = found.mean
    if not gains:
        return Section("classes", "Classes", lead, "")
    column = f"IoU of {BASELINE}"
    ious = {}
    for name in CLASSES:
        values = [value for run in view.runs(BASELINE) if (value := run.values.get(f"IoU-{name}")) is not None]
        if values:
            ious[name, column] = float(np.mean(values))
    rows = [name for name, _ in ious]
    columns = [method for method in view.others if any(key[1] == method for key in gains)]
    drawn = heat_table(rows, columns, gains, diverging=True, scale=2 * LARGE_GAIN)
    return Section("classes", "Classes", lead, side_by_side([drawn, heat_table(rows, [column], ious)]))
