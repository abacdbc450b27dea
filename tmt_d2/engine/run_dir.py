"""Ownership of output folders: the run that a folder holds, and the runs that may resume, add to or replace it.

Each folder names what its files were made from: a training its ``config.yaml``, other commands a JSON file of
``claim``. Locks are in ``utils.lock``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from tmt_d2.adaptation import TASKS
from tmt_d2.config import add_tmt_config, flatten
from tmt_d2.config.file import load_config_file
from tmt_d2.engine.best import Best
from tmt_d2.engine.checkpoint.checkpointer import FINAL, TMTCheckpointer, ended_after
from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write, read_json, write_json

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
PLAIN = "MaskFormer"  # no result of it depends on MODEL.TMT
# Keys that no result depends on, with the value that stands for all.
WITHOUT_EFFECT = {
    "OUTPUT_DIR": "",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "SOLVER.CHECKPOINTS_KEPT": 3,
    "SOLVER.DETECT_ANOMALY": False,
    "LOGGING.IMAGES": 0,
    "LOGGING.WANDB_PROJECT": "",
}
RUNTIME = (*WITHOUT_EFFECT, "MODEL.DEVICE")  # may differ in any run; the device changes rounding only
# May change when a run is resumed.
RESUMABLE = (*RUNTIME, "MODEL.WEIGHTS", "SOLVER.MAX_ITER", "TEST.", "MODEL.TMT.TEST_ATTENTION")


class RunDir:
    """OUTPUT_DIR of a training."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, self.folder = cfg, Path(cfg.OUTPUT_DIR)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints to resume from, in the order in which they are tried."""
        return TMTCheckpointer(nn.Module(), str(self.folder)).resumable()

    def check(self, resume: bool, eval_only: bool = False) -> None:
        """Compare the config with the run in the folder, if there is one, and warn of differences.

        Raises:
            UserError: a run of another method, or one that has ended with other settings, cannot be resumed.
        """
        if resume:
            self._check_resume()
        elif not eval_only and comm.is_main_process():
            results = sorted({task.results for task in TASKS.values()})
            files = [*self.checkpoints(), *(self.folder / name for name in ("metrics.json", *results))]
            names = dict.fromkeys(file.name for file in files if file.is_file())
            if names:
                logger.warning(
                    "%s holds a run, which this one overwrites (%s); --resume would resume it",
                    self.folder,
                    ", ".join(names),
                )

    def _check_resume(self) -> None:
        changed = self._changed_settings()
        if "TRANSFER.METHOD" in changed:
            raise self._refusal(f"--resume: it holds a run with {_differences(changed, ['TRANSFER.METHOD'])}")
        kept = [key for key in changed if not key.startswith(RESUMABLE)]
        if not kept:
            return
        if "SOLVER.MAX_ITER" not in changed and self.checkpoints()[0].stem == FINAL:
            raise self._refusal(f"it holds a run that has ended with other settings: {_differences(changed, kept)}")
        logger.warning(
            "--resume: settings have changed: %s; learning rate and weight decay are those of the checkpoint, the "
            "others are the new ones",
            _differences(changed, kept),
        )

    def check_same_settings(self) -> None:
        """
        Raises:
            UserError: the folder holds a run with another value of a setting that its result depends on.
        """
        derived = (*RUNTIME, "MODEL.SEM_SEG_HEAD.NUM_CLASSES")
        changed = self._changed_settings()
        if kept := [key for key in changed if not key.startswith(derived)]:
            raise self._refusal(f"it holds a run with other settings: {_differences(changed, kept)}")

    def _refusal(self, message: str) -> UserError:
        return UserError(message, key="OUTPUT_DIR", value=str(self.folder), hint="choose another OUTPUT_DIR")

    def _changed_settings(self) -> dict[str, tuple[Any, Any]]:
        """Return config key -> (value of the run in the folder, value now); empty without a run.

        A key that the run did not know yet has its default there.
        """
        if not (self.folder / CONFIG).is_file() or not self.checkpoints():
            return {}
        defaults = get_cfg()
        add_tmt_config(defaults)
        there = flatten(yaml.safe_load(defaults.dump())) | flatten(load_config_file(self.folder / CONFIG))
        here = flatten(yaml.safe_load(self.cfg.dump()))
        changed = {key: (there[key], value) for key, value in here.items() if there.get(key, value) != value}
        if there["MODEL.META_ARCHITECTURE"] == self.cfg.MODEL.META_ARCHITECTURE == PLAIN:
            changed = {key: values for key, values in changed.items() if not key.startswith("MODEL.TMT.")}
        return changed

    def has_ended(self) -> bool:
        """Return True if the folder holds weights without a state to resume: only an evaluation may be missing.

        Raises:
            UserError: this config trains for another number of iterations.
        """
        iterations = ended_after(self.folder)
        if iterations not in (None, self.cfg.SOLVER.MAX_ITER) and not self._stopped_early(iterations):
            raise UserError(
                f"{self.folder} holds only the weights of a run of {iterations} iterations, which cannot be resumed",
                key="SOLVER.MAX_ITER",
                value=self.cfg.SOLVER.MAX_ITER,
                hint=f"choose another OUTPUT_DIR; to start from these weights, set MODEL.WEIGHTS "
                f"{self.folder / FINAL}.pth",
            )
        return iterations is not None

    def _stopped_early(self, iterations: int) -> bool:
        best = Best.from_config(self.cfg)
        if best is not None:
            best.read(iterations)
        return best is not None and best.exhausted


class SaveConfig(HookBase):
    """Writes ``config.yaml`` when training starts; a command without a step to train keeps that of an earlier run."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def before_train(self) -> None:
        self._write(self.trainer.start_iter < self.trainer.max_iter)

    def after_evaluation(self) -> None:
        self._write(not RunDir(self.cfg).checkpoints())

    def _write(self, replace: bool) -> None:
        path = Path(self.cfg.OUTPUT_DIR) / CONFIG
        if comm.is_main_process() and (replace or not path.is_file()):
            with atomic_write(path, "w") as file:
                file.write(self.cfg.dump())


def claim(path: Path, identity: Mapping[str, Any], hint: str = "choose another --output") -> None:
    """Write to ``path`` what the files in its folder are made from, or compare it with what is written there.

    Args:
        identity: values that JSON preserves, by names for messages.

    Raises:
        UserError: the files there are made from something else; its key is the folder.
    """
    if path.is_file():
        check_identity(read_json(path, remedy=hint), identity, path.parent, hint)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)


def check_identity(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path, hint: str) -> None:
    """
    Raises:
        UserError: values of ``here`` differ from those of ``there``; the message names all of them.
    """
    different = [repr(key) for key, value in here.items() if there.get(key) != value]
    if different:
        raise UserError(f"its files are made with other values of {', '.join(different)}", key=folder, hint=hint)


def _differences(changed: Mapping[str, tuple[Any, Any]], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {changed[key][0]}, now {changed[key][1]}" for key in keys)
