"""Labels in, a model out: import of an export, and training on all labels, as ``train_net.py`` does it."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from tmt_d2.adaptation.checks import check_task
from tmt_d2.config import replace_keys, setup_cfg
from tmt_d2.data import register_data
from tmt_d2.data.image_lists import first_names, list_line
from tmt_d2.engine.hooks.evaluation_images import EvaluationImages
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.trainer import Trainer
from tmt_d2.errors import UserError
from tmt_d2.projects.annotation.importing import ImportReport, import_labels
from tmt_d2.projects.loop.project import (
    CONFIG,
    FINISHED,
    LABELS,
    MODELS,
    TRAINED_ON,
    Project,
    next_number,
    trained_lines,
    write_config,
)
from tmt_d2.utils.files import atomic_write

UNITS = {"s": 1, "m": 60, "h": 3600}
WARM_STEPS, TIMED_STEPS = 2, 4  # of the measurement of --time


def import_export(
    project: Project, export: str, *, mapping: Mapping[str, str] | None = None, replace: bool = False
) -> ImportReport:
    """Import labels, as ``tools/import_labels.py``; "missing" has the proposed images without a label only.

    Raises:
        UserError: as ``import_labels``.
    """
    output = project.folder / LABELS
    proposed = {name for folder in project.rounds() for name in project.proposed(folder)}
    copies = {name: str(copy) for name, copy in project.copies().items()}
    options: dict[str, Any] = {"mapping": mapping, "replace": replace, "copies": copies, "gone": project.gone()}
    report = import_labels(export, project.images, project.classes(), output, **options)
    project.refresh()
    report.names["missing"] = sorted(proposed - {*project.with_label()})
    return report


def train(project: Project, seconds: float = 0, opts: Sequence[str] = ()) -> Path | None:
    """Train on all labels that there are; an interrupted training continues.

    Args:
        seconds: duration, from which SOLVER.MAX_ITER is computed; 0: as in the config. An interrupted training keeps
            its number of iterations.
        opts: KEY VALUE ... overrides, which are kept in the config for later trainings.

    Returns:
        the folder of the model; None if there is one of the same labels and nothing else is given.

    Raises:
        UserError: there is no label; an interrupted training would begin again because an image is gone; or as
            ``run_stage``.
    """
    project.refresh()
    if not project.labeled():
        raise UserError("has no label to train on", key="--project", value=str(project.folder), hint="import an export")
    digests, folder = project.label_digests(), project.newest_training()
    is_current = folder is not None and (folder / TRAINED_ON).read_text(encoding="utf-8") == digests
    if folder is not None and (folder / FINISHED).is_file():
        if is_current and not (seconds or opts):
            return None
        folder, is_current = None, False
    folder = folder or project.folder / MODELS / next_number(project.folder / MODELS)
    cfg = training_config(project, folder, opts)
    register_data(cfg)
    check_task(cfg)  # before anything is written
    if is_current:
        write_config(project.folder / CONFIG, cfg)
    else:
        _check_images(project, folder)
        shutil.rmtree(folder, ignore_errors=True)
        if seconds:
            cfg = replace_keys(cfg, {"SOLVER.MAX_ITER": steps_within(seconds, seconds_a_step(cfg))})
        write_config(project.folder / CONFIG, cfg)
        folder.mkdir(parents=True)
        with atomic_write(folder / TRAINED_ON, "w") as file:
            file.write(digests)
    cfg = setup_cfg(project.folder / CONFIG)
    run_stage(cfg, resume=True, hooks=[EvaluationImages(cfg)])
    return folder


def _check_images(project: Project, folder: Path) -> None:
    """
    Raises:
        UserError: an image of the interrupted training in ``folder``, if there is one, is not there now.
    """
    if not (folder / TRAINED_ON).is_file():
        return
    if gone := sorted(trained_lines(folder) - {*map(list_line, project.files)}):
        message = f"is trained on images that are not in {project.place}: {first_names(gone)}"
        raise UserError(message, key=folder, hint="bring them back, or delete this folder to begin again without them")


def training_config(project: Project, folder: Path, opts: Sequence[str]) -> CfgNode:
    """Return the config of the project with its present data sets, an output folder and overrides."""
    splits = project.splits()
    values: dict[str, Any] = {
        "OUTPUT_DIR": str(folder),
        "DATASETS.CUSTOM": project.data_set_files(),
        "DATASETS.TRAIN": tuple(splits["train"]),
        "DATASETS.UNLABELED": tuple(splits["unlabeled"] or splits["train"]),  # once all images are labeled
        # Without a labeled test image the source is tested, or else what was trained on.
        "DATASETS.TEST": tuple(splits["test"] or project.source_test or splits["train"]),
        **({"MODEL.WEIGHTS": project.weights} if project.weights else {}),
    }
    return setup_cfg(project.folder / CONFIG, [*(item for pair in values.items() for item in pair), *opts])


class _StepTimer(HookBase):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_step(self) -> None:
        self.start = time.perf_counter()

    def after_step(self) -> None:
        self.seconds.append(time.perf_counter() - self.start)


class _Untested(Trainer):
    """A trainer that skips the evaluation."""

    @classmethod
    def test(cls, cfg: CfgNode, model: Any, folder: str = "inference", title: str = "") -> dict[str, Any]:
        return {}


def seconds_a_step(cfg: CfgNode) -> float:
    """Measure a few steps with all losses, in a folder that is removed afterwards."""
    folder, timer = Path(f"{cfg.OUTPUT_DIR}.timing"), _StepTimer()
    changes = {"OUTPUT_DIR": str(folder), "SOLVER.MAX_ITER": WARM_STEPS + TIMED_STEPS, "SELF_TRAINING.WARM_UP": 0.0}
    changes |= {"TEST.BEST.METRIC": "", "TEST.BEST.PATIENCE": 0, "SOLVER.CHECKPOINT_PERIOD": 10**6}
    try:
        run_stage(replace_keys(cfg, changes), hooks=[timer], trainer=_Untested)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return median(timer.seconds[WARM_STEPS:])


def steps_within(seconds: float, a_step: float) -> int:
    return max(1, math.floor(seconds / a_step))


def seconds_of(text: str) -> float:
    """Return the seconds of such as 90s, 30m or 1.5h.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or not float(match[1]):
        raise UserError("is no duration", key="--time", value=text, hint="write such as 90s, 30m or 1.5h")
    return float(match[1]) * UNITS[match[2]]
