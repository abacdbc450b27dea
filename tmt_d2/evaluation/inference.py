"""Inference beyond one forward pass: large outputs, sliding windows, several scales and mirror images.

Each wrapper has the inputs and outputs of the model, so it replaces the model in ``inference_on_dataset``.
Scores are kept for at most ``MAX_SCORE_PIXELS`` pixels at once: at 5248 x 3936, K = 19 maps of float32 would be
1.6 GB. A larger output comes as ``sem_seg_labels`` alone, its scores taken at 1/2, 1/4, ... of the input; the masks
of a Mask2Former have 1/4 of the input's size in the first place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from tmt_d2.data.mapper import resized_size
from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.ops.resize import resize, resize_level
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.modeling.precision import bfloat16_where_faster, mixed_precision

MAX_SCORE_PIXELS = 2048 * 2048  # 19 maps: 319 MB


def build_inference(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap ``model`` as ``TEST.PRECISION``, ``TEST.SLIDING_WINDOW`` and ``TEST.AUG`` say."""
    window, augmentation = cfg.TEST.SLIDING_WINDOW, cfg.TEST.AUG
    if cfg.TEST.PRECISION == "bfloat16":
        model = _InBFloat16(model)
    model = SlidingWindow(model, tuple(window.SIZE), tuple(window.STRIDE)) if window.ENABLED else SinglePass(model)
    if augmentation.ENABLED:
        model = MultiScaleFlip(model, augmentation.MIN_SIZES, augmentation.MAX_SIZE, augmentation.FLIP)
    return model


class _InBFloat16(nn.Module):
    """The model under autocast, where that is faster."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.device_type = next(model.parameters()).device.type
        self.dtype = bfloat16_where_faster(self.device_type, "TEST.PRECISION")

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        with mixed_precision(self.device_type, self.dtype):
            return self.model(batched_inputs)


class WithTransferability(nn.Module):
    """A model whose ``sem_seg`` (K + L, H, W) holds the K class scores and then the transferability of each level.

    Averages over windows, scales and mirror images then treat transferability like scores.
    """

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        results = self.model(batched_inputs)
        for record, result in zip(batched_inputs, results):
            scores, image = result["sem_seg"], record["image"].shape[-2:]
            maps = zip(result.pop("transferability", []), STRIDES)
            levels = [resize_level(level[None].float(), stride, image, scores.shape[-2:]) for level, stride in maps]
            result["sem_seg"] = torch.cat([scores, *(level.to(scores) for level in levels)])
        return results


class SinglePass(nn.Module):
    """One forward pass for outputs of up to ``MAX_SCORE_PIXELS``; larger ones are labels, in bounded memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """
        Args:
            batched_inputs: items with ``image`` (3, h, w), and ``height`` and ``width`` of the output (else h, w).

        Returns:
            for each item ``sem_seg`` (K, height, width), or for large outputs ``sem_seg_labels`` (height, width).
        """
        results = []
        for item in batched_inputs:
            height, width = item["image"].shape[1:]
            size = (item.get("height", height), item.get("width", width))
            if size[0] * size[1] <= MAX_SCORE_PIXELS:
                results.append(self._small(item, size))
            else:
                results.append({"sem_seg_labels": labels_at_size(self.scores(item), size)})
        return results

    def _small(self, item: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        return self.model([item])[0]

    def scores(self, item: Mapping[str, Any]) -> Tensor:
        """Return (K, h', w') at the input's size, or a fraction of it that has at most ``MAX_SCORE_PIXELS``."""
        return self._scores_at(item["image"], _score_size(item["image"])[0])

    def _scores_at(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        return self.model([{"image": image, "height": size[0], "width": size[1]}])[0]["sem_seg"]


class _Mean(SinglePass):
    """Base of the means over several passes, for outputs of any size."""

    def _small(self, item: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        return {"sem_seg": resize(self.scores(item), size)}


class SlidingWindow(_Mean):
    """The mean of the scores of overlapping windows of the input."""

    def __init__(self, model: nn.Module, size: tuple[int, int], stride: tuple[int, int]) -> None:
        """
        Args:
            size: (h, w) of a window, in pixels of the input.
            stride: (h, w) between windows, at most ``size``; the last window of a row ends with the image.
        """
        super().__init__(model)
        if not all(0 < step <= length for step, length in zip(stride, size)):
            raise UserError(
                f"must be positive and at most SIZE, {size}", key="TEST.SLIDING_WINDOW.STRIDE", value=stride
            )
        self.size = size
        self.stride = stride

    def scores(self, item: Mapping[str, Any]) -> Tensor:
        image = item["image"]
        (height, width), step = _score_size(image)
        total: Tensor | None = None
        for top, bottom in _spans(image.shape[1], self.size[0], self.stride[0], step):
            for left, right in _spans(image.shape[2], self.size[1], self.stride[1], step):
                rows, columns = slice(top // step, -(-bottom // step)), slice(left // step, -(-right // step))
                size = (rows.stop - rows.start, columns.stop - columns.start)
                part = self._scores_at(image[:, top:bottom, left:right], size)
                if total is None:
                    total, count = part.new_zeros(len(part), height, width), part.new_zeros(height, width)
                total[:, rows, columns] += part
                count[rows, columns] += 1
        assert total is not None  # there is always a window
        return total.div_(count)


class MultiScaleFlip(_Mean):
    """The mean of the scores at several sizes of the input, and of its mirror images."""

    def __init__(self, model: nn.Module, min_sizes: Sequence[int], max_size: int, flip: bool) -> None:
        """
        Args:
            min_sizes: lengths of the shortest edge.
            max_size: upper bound of the longest edge.
            flip: also mirror each of them.
        """
        super().__init__(model)
        if not min_sizes:
            raise UserError("give at least one length of the shortest edge", key="TEST.AUG.MIN_SIZES", value=min_sizes)
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.flip = flip

    def scores(self, item: Mapping[str, Any]) -> Tensor:
        image = item["image"]
        size, _ = _score_size(image)
        total: Tensor | None = None
        for min_size in self.min_sizes:
            scaled = resized_size((image.shape[1], image.shape[2]), min_size, self.max_size)
            view = F.interpolate(image[None].float(), scaled, mode="bilinear", align_corners=False, antialias=True)[0]
            for mirrored in (False, True)[: 1 + self.flip]:
                part = self._scores_at(view.flip(-1) if mirrored else view, size)
                part = part.flip(-1) if mirrored else part
                total = part.clone() if total is None else total.add_(part)
        assert total is not None  # there is always a scale
        return total.div_(len(self.min_sizes) * (1 + self.flip))


def _score_size(image: Tensor) -> tuple[tuple[int, int], int]:
    """Return the size at which scores of ``image`` (3, h, w) are kept, and the power of two that divides it."""
    height, width = image.shape[1:]
    step = 1
    while -(-height // step) * -(-width // step) > MAX_SCORE_PIXELS:
        step *= 2
    return (-(-height // step), -(-width // step)), step


def _spans(length: int, window: int, stride: int, step: int) -> list[tuple[int, int]]:
    """Return (start, end) of windows that cover ``length``; starts are multiples of ``step``."""
    last = max(length - window, 0) // step * step
    starts = [start // step * step for start in range(0, last, stride)] + [last]
    return [(start, length if start == last else start + window) for start in starts]
