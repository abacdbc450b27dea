"""What pretraining knew of things is kept: the distance to frozen features (DAFormer, arXiv 2111.14887, 3.3).

Letters: B images, C channels, (h, w) the coarsest map of the backbone, (H, W) the padded input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PURE = 0.75  # share of a position's pixels that must be of one of the classes


def thing_positions(labels: Tensor, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
    """(B, H, W) train ids -> (B, h, w) bool: where ``PURE`` of the pixels are of a single one of ``classes``."""
    found = torch.zeros(len(labels), *size, dtype=torch.bool, device=labels.device)
    for train_id in classes:
        share = F.adaptive_avg_pool2d((labels == train_id).float()[:, None], size)[:, 0]
        found |= share >= PURE
    return found


def feature_distance(features: Tensor, frozen: Tensor, where: Tensor) -> Tensor:
    """Mean over images of the mean Euclidean distance at the positions ``where``; an image without any counts 0.

    features, frozen: (B, C, h, w). where: (B, h, w) bool.
    """
    distance = torch.linalg.vector_norm(features.float() - frozen.float(), dim=1) * where
    return (distance.sum((1, 2)) / where.sum((1, 2)).clamp(min=1)).mean()
