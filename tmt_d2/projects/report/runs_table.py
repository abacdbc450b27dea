"""A table of runs that ``train_net.py`` made, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tmt_d2.config.file import load_config_file
from tmt_d2.engine.run_dir import RESULTS
from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.utils.files import read_json


def is_run(folder: Path) -> bool:
    return (folder / RESULTS["finetune"]).is_file()


def runs_table(folders: Sequence[Path]) -> str:
    """Metrics in percent, a row for each run and split.

    Raises:
        UserError: a folder has no ``evaluation.json``.
    """
    rows: list[list[Any]] = []
    for folder in folders:
        if not is_run(folder):
            raise UserError(f"{folder}: no {RESULTS['finetune']}: name folders of runs that have ended")
        cfg = load_config_file(folder / "config.yaml")
        transfer, solver = cfg.get("TRANSFER", {}), cfg.get("SOLVER", {})
        method = transfer.get("METHOD", "") if transfer.get("STAGE") == "finetune" else transfer.get("STAGE", "")
        labels = transfer.get("LABELLED") or transfer.get("LABEL_COUNT") or transfer.get("LABEL_FRACTION", "")
        for split, values in read_json(folder / RESULTS["finetune"]).items():
            about = [str(folder), method, labels, solver.get("MAX_ITER", ""), cfg.get("SEED", ""), split]
            rows.append([*about, *(values.get(metric) for metric in METRICS)])
    headers = ("run", "method", "labels", "iterations", "seed", "evaluated on", *METRICS)
    return tabulate(rows, headers=headers, floatfmt=".1f")
