"""The settings that the runs of each stage have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmt_d2.config.file import load_config_file
from tmt_d2.experiments.results import Run
from tmt_d2.projects.report.sections import Cell, Row, Section, Table
from tmt_d2.projects.report.view import View

COLUMNS = ("stage", "runs", "iterations", "batch", "learning rate", "backbone", "p_T", "seconds each")


def settings(view: View) -> Section:
    stages = [("source model", view.results.source), ("estimator", view.results.estimator)]
    stages += [(f"fine-tuning: {method}", view.runs(method)) for method in view.methods]
    rows = [_row(name, runs) for name, runs in stages if runs]
    return Section("settings", "Settings", {"table": Table(COLUMNS, rows)} if rows else {})


def _row(name: str, runs: Sequence[Run]) -> Row:
    cfg = load_config_file(runs[0].folder / "config.yaml")
    backbone = cfg["MODEL"]["BACKBONE"]["NAME"].replace("build_", "").replace("_backbone", "")
    if "resnet" in backbone:
        backbone = f"ResNet-{cfg['MODEL']['RESNETS']['DEPTH']}"
    elif backbone == "timm":
        backbone = cfg["MODEL"]["TIMM"]["NAME"]
    p_t = f"{cfg['MODEL']['TMT']['P_T']:g}" if cfg["MODEL"]["META_ARCHITECTURE"].startswith("Transferable") else ""
    solver = cfg["SOLVER"]
    values = [len(runs), solver["MAX_ITER"], solver["IMS_PER_BATCH"], f"{solver['BASE_LR']:g}", backbone, p_t]
    values.append(f"{np.median([run.seconds for run in runs]):.0f}")
    return Row(name, [Cell(str(value)) for value in values])
