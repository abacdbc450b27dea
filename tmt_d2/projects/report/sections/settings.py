"""The settings that the runs of each stage have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmt_d2.config.file import load_config_file
from tmt_d2.experiments.results import Run
from tmt_d2.projects.report.data import ReportData
from tmt_d2.projects.report.elements import Cell, Section, Table, TableRow

COLUMNS = ("stage", "runs", "iterations", "batch", "learning rate", "backbone", "p_T", "seconds each")


def settings(data: ReportData) -> Section:
    stages = [("source model", data.results.source), ("estimator", data.results.estimator)]
    stages += [(f"fine-tuning: {method}", data.runs(method)) for method in data.methods]
    rows = [_row(name, runs) for name, runs in stages if runs]
    return Section("settings", "Settings", "From the config files of the runs.", [Table(COLUMNS, rows)] if rows else [])


def _row(name: str, runs: Sequence[Run]) -> TableRow:
    cfg = load_config_file(runs[0].folder / "config.yaml")
    model, solver = cfg["MODEL"], cfg["SOLVER"]
    backbone = model["BACKBONE"]["NAME"].replace("build_", "").replace("_backbone", "")
    if "resnet" in backbone:
        backbone = f"ResNet-{model['RESNETS']['DEPTH']}"
    elif backbone == "timm":
        backbone = model["TIMM"]["NAME"]
    p_t = f"{model['TMT']['P_T']:g}" if model["META_ARCHITECTURE"].startswith("Transferable") else ""
    values = [len(runs), solver["MAX_ITER"], solver["IMS_PER_BATCH"], f"{solver['BASE_LR']:g}", backbone, p_t]
    values.append(f"{np.median([run.seconds for run in runs]):.0f}")
    return TableRow(name, [Cell(str(value)) for value in values])
