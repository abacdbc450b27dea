"""results.csv, one line for each run and metric set, and the LaTeX table of the paper's shape."""

from __future__ import annotations

import csv
from pathlib import Path

from tmt_d2.adaptation.methods import BASELINE
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.experiments.records import Labels
from tmt_d2.experiments.results import IOU, Results, by_cell, by_pair, classes_of
from tmt_d2.experiments.statistics import paired_difference, spread
from tmt_d2.utils.files import atomic_write

LABELS = ("label_fraction", "label_count", "labelled")
COLUMNS = ("kind", "source", "target", "method", "seed", *LABELS, "sweep", "key", "value")


def write_csv(results: Results, path: Path) -> None:
    """Every evaluation of the matrix, metrics in percent; a class that the target lacks has an empty field."""
    runs = [*results.source, *results.evaluation, *results.fine_tuned, *results.swept]
    measured = (*METRICS, *(f"{IOU}{name}" for name in classes_of(runs)))
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "seconds", *measured])
        for run in runs:
            about = dict(run.about)
            if about["kind"] == "source":
                about["target"] = about["source"]
            values = [run.values.get(name) for name in measured]
            row = [about.get(name, "") for name in COLUMNS]
            writer.writerow([*row, f"{run.seconds:.1f}", *("" if v is None else f"{v:.4f}" for v in values)])


def cell_text(values: list[float], digits: int = 1, plus_minus: str = "±") -> str:
    """Mean, and the spread over seeds where there are several."""
    if not values:
        return ""
    mean, deviation = spread(values)
    return f"{mean:.{digits}f}" + (f" {plus_minus} {deviation:.{digits}f}" if deviation is not None else "")


def latex_table(results: Results, labels: Labels, metric: str = METRICS[0]) -> str:
    """Pairs by methods, then differences over all pairs, bold where the interval is above 0."""
    methods = results.methods()
    values = {method: by_pair(results.of(method, labels), metric) for method in methods}
    baseline = by_cell(results.of(BASELINE, labels), metric)
    seeds = len(results.seeds())
    lines = [
        f"% {metric} in percent, {labels}, mean and standard deviation over {seeds} seed(s)",
        rf"\begin{{tabular}}{{l{'c' * len(methods)}}}",
        r"\hline",
        " & ".join(["pair", *map(_escape, methods)]) + r" \\",
        r"\hline",
    ]
    for pair in results.pairs():
        cells = []
        for method in methods:
            text = cell_text(values[method].get(pair, []), plus_minus=r"\pm")
            cells.append(f"${text}$" if text else "--")
        lines.append(" & ".join([_escape(f"{pair[0]} -> {pair[1]}"), *cells]) + r" \\")
    lines.append(r"\hline")
    differences = []
    for method in methods:
        difference = paired_difference(by_cell(results.of(method, labels), metric), baseline)
        if method == BASELINE or difference is None:
            differences.append("--")
        else:
            interval = "" if difference.low is None else rf"\ [{difference.low:+.1f}, {difference.high:+.1f}]"
            text = f"{difference.mean:+.1f}{interval}"
            is_gain = difference.low is not None and difference.is_clear and difference.mean > 0
            differences.append(rf"$\mathbf{{{text}}}$" if is_gain else f"${text}$")
    lines.append(" & ".join([f"minus {BASELINE}", *differences]) + r" \\")
    lines += [r"\hline", r"\end{tabular}", ""]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("_", r"\_").replace("->", r"$\to$")
