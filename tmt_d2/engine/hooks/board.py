"""What the model being trained says about a few held-out pictures, in TensorBoard, at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from tmt_d2.data.datasets.registration import records_of
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import read_image_of
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.ops.resize import resize_level
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.visualization.overlays import TRANSFERABILITY_MAP, heat_overlay, label_overlay
from tmt_d2.visualization.sizes import resized, size_within

LONGEST = 768


@contextmanager
def _transferability_beside(model: Any) -> Iterator[None]:
    """Outputs hold "transferability", where the model has it, inside the context."""
    if not isinstance(model, TransferableMaskFormer):
        yield
        return
    before, model.output_transferability = model.output_transferability, True
    try:
        yield
    finally:
        model.output_transferability = before


class EvaluationPictures(HookBase):
    """LOGGING.IMAGES of the first of DATASETS.TEST: the prediction, and T of the finest level. In the first process."""

    def __init__(self, cfg: CfgNode) -> None:
        self.count, self.period = cfg.LOGGING.IMAGES, cfg.TEST.EVAL_PERIOD
        self.mapper = SemanticMapper(cfg, is_train=False)
        self.split = cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else ""

    def after_step(self) -> None:
        if self.period > 0 and (self.trainer.iter + 1) % self.period == 0:
            self.draw()

    def after_train(self) -> None:
        if self.period <= 0 or self.trainer.max_iter % self.period:  # else the last step has drawn them
            self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        if not (self.count and self.split and comm.is_main_process()):
            return
        trainer: Any = self.trainer
        model = trainer.checkpointer.model
        with evaluation_mode(model), _transferability_beside(model):
            self._draw(model)

    def _draw(self, model: Any) -> None:
        for index, record in enumerate(records_of([self.split])[: self.count]):
            image = read_image_of(record)
            picture = resized(image, size_within(image.shape[:2], LONGEST))
            item = self.mapper(record)
            (result,) = model([item])
            labels = labels_at_size(result["sem_seg"], picture.shape[:2]).cpu().numpy()
            self._put(f"{self.split}/{index} prediction", label_overlay(picture, labels, model.classes))
            for t in result.get("transferability", [])[-1:]:
                image_size = item["image"].shape[-2:]
                t = resize_level(t[None].float(), STRIDES[-1], image_size, picture.shape[:2])[0].cpu().numpy()
                self._put(f"{self.split}/{index} T", heat_overlay(picture, t, TRANSFERABILITY_MAP))

    def _put(self, name: str, picture: np.ndarray) -> None:
        self.trainer.storage.put_image(name, np.ascontiguousarray(picture.transpose(2, 0, 1)))
