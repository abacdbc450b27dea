"""Feature distance to a pretrained backbone (DAFormer, arXiv 2111.14887, 3.3).

Letters: B images, C channels, (h, w) the coarsest map of the backbone, (H, W) the padded input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PURE = 0.75  # share of a position's pixels that must be of one of the classes


def class_positions(labels: Tensor, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
    """(B, H, W) train ids -> (B, h, w) bool: where ``PURE`` of the pixels are of a single one of ``classes``."""
    pure = torch.zeros(len(labels), *size, dtype=torch.bool, device=labels.device)
    for train_id in classes:
        share = F.adaptive_avg_pool2d((labels == train_id).float()[:, None], size)[:, 0]
        pure |= share >= PURE
    return pure


def feature_distance(features: Tensor, frozen: Tensor, positions: Tensor) -> Tensor:
    """Return the mean over images of the mean Euclidean distance at ``positions``; 0 for an image without any.

    features, frozen: (B, C, h, w). positions: (B, h, w) bool.
    """
    distance = torch.linalg.vector_norm(features.float() - frozen.float(), dim=1) * positions
    return (distance.sum((1, 2)) / positions.sum((1, 2)).clamp(min=1)).mean()


def coarsest(maps: Mapping[str, Tensor]) -> Tensor:
    """Return the smallest map of a backbone."""
    return min(maps.values(), key=lambda each: each.shape[-1] * each.shape[-2])


@contextmanager
def recorded_outputs(module: nn.Module) -> Iterator[list[Any]]:
    """Collect the outputs of ``module`` within the block."""
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()
