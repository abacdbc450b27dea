"""What OUTPUT_DIR may hold of runs before: what is gone on with, refused, warned of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from tmt_d2.config.file import load_config_file
from tmt_d2.engine.best import Best
from tmt_d2.engine.checkpoint.checkpointer import FINAL, TMTCheckpointer, ended_after
from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write

logger = logging.getLogger(__name__)

RESULTS = {"source": "evaluation.json", "estimator": "estimator.json", "finetune": "evaluation.json"}
CONFIG = "config.yaml"
MAY_CHANGE = (  # between the sittings of a run
    "OUTPUT_DIR",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT",
    "TEST.",
)


class KeepConfig(HookBase):
    """The config of a run that has begun; neither a refused command nor one without a step to train changes that of an
    earlier run."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def before_train(self) -> None:
        self._write(self.trainer.start_iter < self.trainer.max_iter)

    def after_evaluation(self) -> None:
        """Of an evaluation in a folder where nothing was trained."""
        self._write(not TMTCheckpointer(nn.Module(), self.cfg.OUTPUT_DIR).has_checkpoint())

    def _write(self, replace: bool) -> None:
        path = Path(self.cfg.OUTPUT_DIR) / CONFIG
        if comm.is_main_process() and (replace or not path.is_file()):
            with atomic_write(path, "w") as file:
                file.write(self.cfg.dump())


def refuse_another_run_in(folder: Path, cfg: CfgNode) -> None:
    """What is resumed must be of this stage and method; what else has changed is said."""
    if not (folder / CONFIG).is_file() or not TMTCheckpointer(nn.Module(), str(folder)).has_checkpoint():
        return
    there = flat(load_config_file(folder / CONFIG))
    here = flat(yaml.safe_load(cfg.dump()))
    for key in ("TRANSFER.STAGE", "TRANSFER.METHOD"):
        if there.get(key, here[key]) != here[key] and (key == "TRANSFER.STAGE" or cfg.TRANSFER.STAGE == "finetune"):
            raise UserError(
                f"--resume: {folder} holds a run of {key} {there[key]}, this one is {here[key]}: choose another "
                "OUTPUT_DIR"
            )
    changed = [key for key in here if key in there and there[key] != here[key] and not key.startswith(MAY_CHANGE)]
    newest = TMTCheckpointer(nn.Module(), str(folder)).resumable()[0]
    if changed and newest.stem == FINAL and there.get("SOLVER.MAX_ITER") == cfg.SOLVER.MAX_ITER:
        raise UserError(
            f"{folder} holds a run that has ended with other settings: {_differences(changed, there, here)}: choose "
            "another OUTPUT_DIR"
        )
    if changed:
        logger.warning(
            "--resume: the run began with other settings: %s; learning rate and weight decay stay those of its "
            "checkpoint, the others are the new ones from here on",
            _differences(changed, there, here),
        )


def refuse_other_settings_in(folder: Path, cfg: CfgNode) -> None:
    """Refuse a run in ``folder`` of any other setting that a result depends on.

    Raises:
        UserError: names the settings.
    """
    if not (folder / CONFIG).is_file() or not TMTCheckpointer(nn.Module(), str(folder)).has_checkpoint():
        return
    there, here = flat(load_config_file(folder / CONFIG)), flat(yaml.safe_load(cfg.dump()))
    free = (
        "OUTPUT_DIR",
        "DATALOADER.NUM_WORKERS",
        "MODEL.DEVICE",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        "SOLVER.CHECKPOINT",
    )
    changed = [key for key in here if key in there and there[key] != here[key] and not key.startswith(free)]
    if changed:
        raise UserError(
            f"{folder} holds a run of other settings: {_differences(changed, there, here)}: choose another folder, or "
            "delete it to run it again"
        )


def _differences(keys: Sequence[str], there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {there[key]}, now {here[key]}" for key in keys)


def flat(node: Any, place: str = "") -> dict[str, Any]:
    """A config as dictionaries in dictionaries -> {"SOLVER.BASE_LR": value}."""
    if not isinstance(node, dict):
        return {place: node}
    return {key: value for name in node for key, value in flat(node[name], f"{place}.{name}".lstrip(".")).items()}


def has_ended(cfg: CfgNode) -> bool:
    """Whether OUTPUT_DIR holds this stage's weights and nothing to train on from: then only results may be missing."""
    iterations = ended_after(cfg.OUTPUT_DIR)
    if iterations not in (None, cfg.SOLVER.MAX_ITER) and not _stopped_early(cfg, iterations):
        raise UserError(
            f"{cfg.OUTPUT_DIR} holds only the weights of a run that ended after {iterations} iterations, "
            f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: it cannot go on; choose another OUTPUT_DIR, with MODEL.WEIGHTS "
            f"{cfg.OUTPUT_DIR}/{FINAL}.pth to begin from these weights"
        )
    return iterations is not None


def _stopped_early(cfg: CfgNode, iterations: int) -> bool:
    best = Best.from_config(cfg)
    if best is not None:
        best.read(iterations)
    return best is not None and best.exhausted


def warn_of_a_run_in(folder: Path) -> None:
    files = TMTCheckpointer(nn.Module(), str(folder)).resumable()
    names = [file.name for file in files] + [
        name for name in ("metrics.json", *sorted(set(RESULTS.values()), reverse=True)) if (folder / name).is_file()
    ]
    if names:
        logger.warning(
            "%s holds a run already, and without --resume it begins anew: what it has is overwritten as the new run "
            "goes on (%s)",
            folder,
            ", ".join(names),
        )
