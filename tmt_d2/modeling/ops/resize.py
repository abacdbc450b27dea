"""Bilinear resizing."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(C, H, W) or (B, C, H, W) -> maps of ``size``; without a copy if they have that size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.dim() == 3:
        return resize(maps[None], size)[0]
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def resize_level(level: Tensor, stride: int, image: Sequence[int], size: Sequence[int]) -> Tensor:
    """Resize a level (C, h, w) of an image (H, W) to (C, *size); h = ceil(H / stride), so the last positions may reach
    beyond the image."""
    covered = [positions * stride for positions in level.shape[-2:]]
    return resize(resize(level, covered)[..., : image[0], : image[1]], size)
