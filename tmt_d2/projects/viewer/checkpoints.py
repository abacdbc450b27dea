"""Trained models below a folder, and their answer for a pixel of an image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tmt_d2.adaptation import BASELINE, OURS
from tmt_d2.inference.predictor import AS_IN_TRAINING, Predictor
from tmt_d2.projects.viewer.pixel_view import pixel_html
from tmt_d2.visualization.inspection import attention_report, masking_p_t
from tmt_d2.visualization.sizes import shrink

LONGEST_SHOWN = 960
FIRST = (OURS, BASELINE)  # checkpoints of these methods come first, then the others by name
MODELS_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """Files of a trained model; name: its folder below the folder of all checkpoints."""

    name: str
    config_file: Path
    weights: Path

    @property
    def title(self) -> str:
        """Readable name: "tmt, cityscapes → bdd100k, all labels, seed 1"; of other folders the name itself."""
        unit = re.fullmatch(r"(source|estimator)/([^/]+)/seed(\d+)(.*)", self.name)
        if unit:
            kind, place, seed, variant = unit.groups()
            return f"{kind}{variant}, {place.replace('-', ' → ')}, seed {seed}"
        unit = re.fullmatch(r"finetune/([^/]+)/(.+)/labels([\d.]+)/seed(\d+)", self.name)
        if not unit:
            return self.name
        place, method, labels, seed = unit.groups()
        amount = "all labels" if float(labels) == 1 else f"{labels} of the labels"
        return f"{method.replace('/', ', ')}, {place.replace('-', ' → ')}, {amount}, seed {seed}"


def find_checkpoints(folder: Path) -> dict[str, Checkpoint]:
    """Return the checkpoints below ``folder`` by name.

    Raises:
        FileNotFoundError: there is none.
    """
    checkpoints = [
        Checkpoint(weights.parent.relative_to(folder).as_posix(), weights.with_name("config.yaml"), weights)
        for weights in sorted(folder.rglob("model_final.pth"))
        if weights.with_name("config.yaml").is_file()
    ]
    if not checkpoints:
        raise FileNotFoundError(
            f"--output {folder}: no folder with model_final.pth and config.yaml: run `make demo`, or name the output "
            "folder of train_net.py, train_pair.py or train_matrix.py"
        )
    checkpoints.sort(key=lambda checkpoint: [method not in checkpoint.name.split("/") for method in FIRST])
    return {checkpoint.name: checkpoint for checkpoint in checkpoints}


class Viewer:
    """Models by name, loaded when needed, and their answers as HTML."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self.checkpoints = checkpoints
        self._predictor = lru_cache(MODELS_KEPT)(self._load)

    def _load(self, name: str) -> Predictor:
        checkpoint = self.checkpoints[name]
        return Predictor.from_config(str(checkpoint.config_file), str(checkpoint.weights), AS_IN_TRAINING)

    def layers(self, name: str) -> int:
        decoder: Any = self._predictor(name).model.sem_seg_head.predictor
        return decoder.num_layers

    def p_t(self, name: str) -> float | None:
        """Return p_T as trained; None if transferability masks no attention."""
        return masking_p_t(self._predictor(name).model)

    def show(self, image: np.ndarray, at: tuple[float, float], name: str, layer: int, p_t: float) -> str:
        """Return the HTML of the query that owns a pixel.

        Args:
            image: (H, W, 3) uint8 RGB of any size.
            at: the clicked point (x, y), in [0, 1] of width and height.
        """
        predictor = self._predictor(name)
        shown = shrink(image, LONGEST_SHOWN)
        height, width = shown.shape[:2]
        pixel = min(int(at[0] * width), width - 1), min(int(at[1] * height), height - 1)
        record = predictor.model_input(image)
        report = attention_report(predictor.model, record, shown, selectors=[pixel], layers=[layer], p_t=p_t)
        return pixel_html(report, at)
