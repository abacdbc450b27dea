"""Tables without HTML: results.csv, the LaTeX table of the paper's shape, and runs of ``train_net.py`` as text."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tmt_d2.adaptation import BASELINE, Task
from tmt_d2.config.file import load_config_file
from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.experiments.results import IOU, Labels, Results, by_cell, by_pair, classes_of
from tmt_d2.experiments.statistics import Difference, paired_difference, spread
from tmt_d2.utils.files import atomic_write, read_json

LABELS = ("label_fraction", "label_count", "label_list")
COLUMNS = ("kind", "source", "target", "method", "seed", *LABELS, "sweep", "key", "value")


def write_csv(results: Results, path: Path) -> None:
    """A row for each evaluation, metrics in percent; a class that the target lacks has an empty field."""
    runs = [*results.source, *results.evaluation, *results.fine_tuned, *results.swept]
    measured = (*METRICS, *(f"{IOU}{name}" for name in classes_of(runs)))
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "seconds", *measured])
        for run in runs:
            about = {"target": run.about["source"], **run.about}
            values = [run.values.get(name) for name in measured]
            row = [about.get(name, "") for name in COLUMNS]
            writer.writerow([*row, f"{run.seconds:.1f}", *("" if v is None else f"{v:.4f}" for v in values)])


def cell_text(values: list[float], plus_minus: str = "±") -> str:
    """Mean, and the spread over seeds where there are several."""
    if not values:
        return ""
    mean, deviation = spread(values)
    return f"{mean:.1f}" + (f" {plus_minus} {deviation:.1f}" if deviation is not None else "")


def latex_table(results: Results, labels: Labels, metric: str = METRICS[0]) -> str:
    """Pairs by methods, then differences over all pairs, bold where the interval is above 0."""
    methods = results.methods()
    values = {method: by_pair(results.of(method, labels), metric) for method in methods}
    baseline = by_cell(results.of(BASELINE, labels), metric)
    rows = [["pair", *map(_escape, methods)]]
    for source, target in results.pairs():
        texts = [cell_text(values[method].get((source, target), []), plus_minus=r"\pm") for method in methods]
        rows.append([rf"{_escape(source)} $\to$ {_escape(target)}", *(f"${text}$" if text else "--" for text in texts)])
    differences = [paired_difference(by_cell(results.of(method, labels), metric), baseline) for method in methods]
    last = ["--" if method == BASELINE else _latex(each) for method, each in zip(methods, differences)]
    rows.append([f"minus {BASELINE}", *last])
    head, *body = [" & ".join(row) + r" \\" for row in rows]
    lines = [
        f"% {metric} in percent, {labels}, mean and standard deviation over {len(results.seeds())} seed(s)",
        rf"\begin{{tabular}}{{l{'c' * len(methods)}}}",
        *(r"\hline", head, r"\hline", *body[:-1], r"\hline", body[-1], r"\hline"),
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


def _latex(difference: Difference | None) -> str:
    if difference is None:
        return "--"
    interval = "" if difference.low is None else rf"\ [{difference.low:+.1f}, {difference.high:+.1f}]"
    text = f"{difference.mean:+.1f}{interval}"
    return rf"$\mathbf{{{text}}}$" if difference.is_clear and difference.mean > 0 else f"${text}$"


def _escape(text: str) -> str:
    return text.replace("_", r"\_")


def is_run(folder: Path) -> bool:
    return (folder / Task.results).is_file()


def runs_table(folders: Sequence[Path]) -> str:
    """Metrics in percent of runs of ``train_net.py``, a row for each run and split.

    Raises:
        UserError: a folder has no ``evaluation.json``.
    """
    rows: list[list[Any]] = []
    for folder in folders:
        if not is_run(folder):
            raise UserError(f"no {Task.results}", key=folder, hint="name folders of runs that have ended")
        cfg = load_config_file(folder / "config.yaml")
        transfer, solver = cfg.get("TRANSFER", {}), cfg.get("SOLVER", {})
        method = transfer.get("METHOD", "")
        share = f"{transfer.get('LABEL_FRACTION', 1.0):.0%}"
        labels = transfer.get("LABEL_LIST") or transfer.get("LABEL_COUNT") or share
        for split, values in read_json(folder / Task.results).items():
            about = [str(folder), method, labels, solver.get("MAX_ITER", ""), cfg.get("SEED", ""), split]
            rows.append([*about, *(values.get(metric) for metric in METRICS)])
    headers = ("run", "method", "labels", "iterations", "seed", "evaluated on", *METRICS)
    return tabulate(rows, headers=headers, floatfmt=".1f", disable_numparse=[2])
