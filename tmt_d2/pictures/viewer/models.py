"""Trained models for the page: which there are, and what they see in a picture."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge

from tmt_d2.data.augmentation import Crop, crop_image
from tmt_d2.deployment import load_model
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.pictures.inspection import attention_report
from tmt_d2.pictures.viewer.answer import answer_html
from tmt_d2.pictures.viewer.images import within

LONGEST_SHOWN = 960
FIRST = ("tmt", "full")  # checkpoints of these methods in this order, then the others by name
MODELS_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A trained model: its name on the page and its files."""

    name: str
    config_file: Path
    weights: Path


def find_checkpoints(folder: Path) -> dict[str, Checkpoint]:
    """By name, those below ``folder``.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [
        Checkpoint(weights.parent.relative_to(folder).as_posix(), weights.with_name("config.yaml"), weights)
        for weights in sorted(folder.rglob("model_final.pth"))
        if weights.with_name("config.yaml").is_file()
    ]
    if not found:
        raise FileNotFoundError(
            f"--output {folder}: no folder with model_final.pth and config.yaml here: run `make demo`, "
            "or name the output folder of train_net.py, train_pair.py or train_matrix.py"
        )
    found.sort(key=lambda checkpoint: [method not in checkpoint.name.split("/") for method in FIRST])
    return {checkpoint.name: checkpoint for checkpoint in found}


class Viewer:
    """Models by name, loaded when asked for, and what they see as HTML."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]):
        self.checkpoints = checkpoints
        self._lock = threading.Lock()  # p_T belongs to the model, so one look at a time
        self._load = lru_cache(MODELS_KEPT)(self._read)

    def _read(self, name: str) -> tuple[CfgNode, Any, float | None]:
        """Config, model (Any, because it is one of two kinds), p_t as trained."""
        checkpoint = self.checkpoints[name]
        cfg, model = load_model(str(checkpoint.config_file), str(checkpoint.weights))
        if isinstance(model, TransferableMaskFormer) and model.attention == "hard":
            return cfg, model, model.p_t
        return cfg, model, None

    def layers(self, name: str) -> int:
        return self._load(name)[1].sem_seg_head.predictor.num_layers

    def p_t(self, name: str) -> float | None:
        """As trained; None where transferability masks no attention."""
        return self._load(name)[2]

    def show(self, picture: np.ndarray, at: tuple[float, float], name: str, layer: int, p_t: float) -> str:
        """
        Args:
            picture: (H, W, 3) uint8 RGB of any size. at: the clicked point (x, y), in [0, 1] of width and height.
        """
        shown = within(picture, LONGEST_SHOWN)
        height, width = shown.shape[:2]
        pixel = min(int(at[0] * width), width - 1), min(int(at[1] * height), height - 1)
        with self._lock:
            cfg, model, trained = self._load(name)
            if trained is not None:
                model.p_t = p_t
            report = attention_report(model, model_input(cfg, picture), shown, wanted=[pixel], layers=[layer])
        return answer_html(report, at)


def model_input(cfg: CfgNode, picture: np.ndarray) -> dict[str, torch.Tensor]:
    """A picture in memory, resized as in testing."""
    size = picture.shape[:2]
    shape = size
    if cfg.INPUT.MIN_SIZE_TEST:
        shape = ResizeShortestEdge.get_output_shape(*size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    pixels = crop_image(picture, Crop(size, shape, 0, 0, *shape))
    if cfg.INPUT.FORMAT == "BGR":
        pixels = pixels[..., ::-1]
    return {"image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))}
