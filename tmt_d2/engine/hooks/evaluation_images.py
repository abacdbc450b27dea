"""Predictions on a few test images, in TensorBoard and Weights & Biases, at every evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm

from tmt_d2.data.datasets.registration import records_of
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import read_image_of
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.ops.resize import resize_level
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.modeling.tmt import output_transferability
from tmt_d2.visualization.overlays import TRANSFERABILITY_MAP, heat_overlay, label_overlay
from tmt_d2.visualization.sizes import resized, size_within

LONGEST = 768


class EvaluationImages(EvalHook):
    """Draws the prediction, and T of the finest level, of the first LOGGING.IMAGES images of the first test split.

    Only the first process draws.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg.TEST.EVAL_PERIOD, self._draw)
        self.count, self.splits = cfg.LOGGING.IMAGES, cfg.DATASETS.TEST[:1]
        self.mapper = SemanticMapper(cfg, is_train=False)

    @torch.no_grad()
    def _draw(self) -> None:
        if not (self.count and self.splits and comm.is_main_process()):
            return
        model = self.trainer.checkpointer.model
        with evaluation_mode(model), output_transferability(model):
            for index, record in enumerate(records_of(self.splits)[: self.count]):
                self._draw_image(model, f"{self.splits[0]}/{index}", record)

    def _draw_image(self, model: Any, name: str, record: dict[str, Any]) -> None:
        image = read_image_of(record)
        image = resized(image, size_within(image.shape[:2], LONGEST))
        item = self.mapper(record)
        (result,) = model([item])
        labels = labels_at_size(result["sem_seg"], image.shape[:2]).cpu().numpy()
        self._put(f"{name} prediction", label_overlay(image, labels, model.classes))
        for t in result.get("transferability", [])[-1:]:
            input_size = item["image"].shape[-2:]
            t = resize_level(t[None].float(), STRIDES[-1], input_size, image.shape[:2])[0].cpu().numpy()
            self._put(f"{name} T", heat_overlay(image, t, TRANSFERABILITY_MAP))

    def _put(self, name: str, image: np.ndarray) -> None:
        self.trainer.storage.put_image(name, np.ascontiguousarray(image.transpose(2, 0, 1)))
