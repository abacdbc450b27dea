"""Writers of scalars and images: the screen, ``metrics.json``, TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
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
from tmt_d2.utils.files import atomic_write, finite

METRICS = "metrics.json"


def build_writers(cfg: CfgNode) -> list[EventWriter]:
    """Return Detectron2's default writers, with strict JSON, and Weights & Biases if LOGGING.WANDB_PROJECT is set.

    Raises:
        UserError: LOGGING.WANDB_PROJECT is set and the package is not installed.
    """
    folder = cfg.OUTPUT_DIR
    os.makedirs(folder, exist_ok=True)
    writers = [CommonMetricPrinter(cfg.SOLVER.MAX_ITER), StrictJSONWriter(os.path.join(folder, METRICS))]
    if cfg.LOGGING.WANDB_PROJECT:
        writers.append(WandbWriter(cfg))
    return [*writers, TensorboardXWriter(folder)]  # the last, as it clears the images


class WandbWriter(EventWriter):
    """Writes scalars and images to a run of Weights & Biases; a resumed training continues its run."""

    def __init__(self, cfg: CfgNode) -> None:
        try:
            import wandb
        except ImportError as error:
            project = cfg.LOGGING.WANDB_PROJECT
            raise UserError(
                "wandb is not installed", key="LOGGING.WANDB_PROJECT", value=project, hint="pip install wandb"
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
        for name, image, step in storage._vis_data:  # as in Detectron2's TensorBoard writer
            by_step.setdefault(step, {})[name] = self.wandb.Image(image.transpose(1, 2, 0))
        for step in sorted(by_step):
            self.run.log(by_step[step], step=step)
        self.last = max([self.last, *by_step])

    def close(self) -> None:
        self.run.finish()


class StrictJSONWriter(JSONWriter):
    """Detectron2's JSONWriter with null for values that are not finite: JSON has no NaN."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        super().__init__(json_file, window_size)
        self._file_handle: Any = _Strict(self._file_handle)


class _Strict:
    """A file that replaces NaN in the lines written to it."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(json.dumps(finite(json.loads(line)), allow_nan=False) + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def forget_metrics(folder: str, start: int) -> None:
    """Remove the lines of ``folder/metrics.json`` of iterations from ``start`` on, and an incomplete last line."""
    path = Path(folder) / METRICS
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("}\n") and _scalars(line).get("iteration", start) < start]
    if len(kept) < len(lines):
        with atomic_write(path, "w") as file:
            file.writelines(kept)


def has_evaluation(folder: str, iteration: int) -> bool:
    """Return True if ``folder/metrics.json`` holds a metric, whose name is that of a split and its own, of the step."""
    path = Path(folder) / METRICS
    lines = map(_scalars, path.read_text().splitlines()) if path.is_file() else []
    return any("/" in name for scalars in lines if scalars.get("iteration") == iteration for name in scalars)


def _scalars(line: str) -> dict[str, Any]:
    """Return the scalars in a line of ``metrics.json``; none if it is damaged."""
    try:
        scalars = json.loads(line)
    except ValueError:
        return {}
    return scalars if isinstance(scalars, dict) else {}
