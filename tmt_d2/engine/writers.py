"""Where the numbers of a run go: the screen, ``metrics.json``, TensorBoard."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from tmt_d2.errors import UserError
from tmt_d2.utils.files import finite


def build_writers(cfg: CfgNode) -> list[EventWriter]:
    """Return Detectron2's default writers, with strict JSON, and Weights & Biases if LOGGING.WANDB_PROJECT is set.

    Raises:
        UserError: LOGGING.WANDB_PROJECT is set and the package is not installed.
    """
    folder = cfg.OUTPUT_DIR
    os.makedirs(folder, exist_ok=True)
    writers = [CommonMetricPrinter(cfg.SOLVER.MAX_ITER), StrictJSONWriter(os.path.join(folder, "metrics.json"))]
    if cfg.LOGGING.WANDB_PROJECT:
        writers.append(WandbWriter(cfg))
    return [*writers, TensorboardXWriter(folder)]  # which clears the pictures: the last


class WandbWriter(EventWriter):
    """Scalars and pictures as a run of Weights & Biases; the same run again where training is resumed in its folder."""

    def __init__(self, cfg: CfgNode) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"LOGGING.WANDB_PROJECT is {cfg.LOGGING.WANDB_PROJECT!r}: it needs `pip install wandb`"
            ) from error
        self.wandb = wandb
        folder = os.path.abspath(cfg.OUTPUT_DIR)
        self.run = wandb.init(
            project=cfg.LOGGING.WANDB_PROJECT,
            name=os.path.basename(folder),
            id=hashlib.sha256(folder.encode(errors="surrogateescape")).hexdigest()[:16],
            resume="allow",
            dir=folder,
            config=yaml.safe_load(cfg.dump()),
        )
        self.last = -1

    def write(self) -> None:
        storage = get_event_storage()
        by_step: dict[int, dict[str, Any]] = {}
        for name, (value, step) in storage.latest_with_smoothing_hint(20).items():
            if step > self.last:
                by_step.setdefault(step, {})[name] = value
        for name, picture, step in storage._vis_data:  # as Detectron2's TensorBoard writer reads them
            by_step.setdefault(step, {})[name] = self.wandb.Image(picture.transpose(1, 2, 0))
        for step in sorted(by_step):
            self.run.log(by_step[step], step=step)
        self.last = max([self.last, *by_step])

    def close(self) -> None:
        self.run.finish()


class StrictJSONWriter(JSONWriter):
    """Detectron2's, but what is not finite is null: JSON has no NaN, and jq or a browser stop at one."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        super().__init__(json_file, window_size)
        self._file_handle: Any = _Strict(self._file_handle)


class _Strict:
    """A file into which lines of JSON are written."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(json.dumps(finite(json.loads(line)), allow_nan=False) + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
