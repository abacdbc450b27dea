"""Samples of the predictions of a model on images, with T where the model has an estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from tmt_d2.data.datasets.label_spaces import IGNORE, class_list_of
from tmt_d2.data.datasets.registration import read_record_label
from tmt_d2.data.mapper import model_input
from tmt_d2.data.reader import read_image_of
from tmt_d2.errors import UserError
from tmt_d2.estimation.sample import PixelSample
from tmt_d2.evaluation.inference import SinglePass, WithTransferability, build_inference
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.tmt import output_transferability

IMAGES = 300  # at most, of a split


class Collector:
    """A model that predicts as in testing (TEST.SLIDING_WINDOW, TEST.AUG, TEST.PRECISION)."""

    def __init__(self, cfg: CfgNode, model: MaskFormer) -> None:
        self.model, self.num_classes = model, len(class_list_of(model))
        self.sizes = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self._reads_bgr = cfg.INPUT.FORMAT == "BGR"
        self._inference = cast(SinglePass, build_inference(cfg, WithTransferability(model)))

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray, truth: np.ndarray | None = None) -> PixelSample:
        """Sample one image. pixels: (H, W, 3) uint8 RGB, also for a model that reads BGR. truth: (H, W) uint8."""
        pixels = pixels[:, :, ::-1] if self._reads_bgr else pixels
        with evaluation_mode(self.model), output_transferability(self.model):
            maps = self._inference.scores(model_input(pixels, *self.sizes)).float().cpu()
        scores, transferability = maps[: self.num_classes], maps[self.num_classes :]
        return PixelSample.of_image(scores, transferability if len(transferability) else None, truth)

    def of_records(
        self, records: Sequence[Mapping[str, Any]], with_labels: bool = True, progress: str = ""
    ) -> PixelSample:
        """Sample images of registered splits.

        Args:
            progress: title of a progress bar; empty for none.

        Raises:
            UserError: ``with_labels``, and no pixel has a label. DataError: an image or a label cannot be read.
        """
        samples = []
        for record in tqdm(records, unit="image", desc=progress, disable=not progress):
            truth = read_record_label(record) if with_labels else None
            samples.append(self(read_image_of(record), truth))
        sample = PixelSample.concatenate(samples)
        if sample.truth is not None and not (sample.truth != IGNORE).any():
            raise UserError("no pixel of its images has a label", key=records[0]["dataset"])
        return sample


def spread(records: Sequence[Mapping[str, Any]], limit: int = IMAGES) -> list[Mapping[str, Any]]:
    """Return at most ``limit`` records, evenly spread."""
    chosen = np.unique(np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int))
    return [records[index] for index in chosen]
