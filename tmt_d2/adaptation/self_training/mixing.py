"""ClassMix (arXiv 2007.07936): some classes of a picture with a label are pasted onto one without."""

from __future__ import annotations

import torch
from torch import Tensor

from tmt_d2.data.datasets.label_spaces import IGNORE


def pasted(label: Tensor, size: torch.Size) -> Tensor:
    """Where a picture of ``size`` (H, W) shows what is pasted: bool, True at half of the classes of ``label`` (h, w).

    Of an odd number the larger half. Which, the CPU's generator decides. Pictures lie on one another at the top left.
    """
    classes = label.unique()
    classes = classes[classes != IGNORE]
    chosen = torch.randperm(len(classes))[: (len(classes) + 1) // 2].to(label.device)
    height, width = (min(pair) for pair in zip(label.shape, size))
    mask = torch.zeros(size, dtype=torch.bool, device=label.device)
    mask[:height, :width] = torch.isin(label[:height, :width], classes[chosen])
    return mask


def paste(below: Tensor, above: Tensor, mask: Tensor) -> Tensor:
    """``above`` (..., h, w) where ``mask`` (H, W) is True, and else ``below`` (..., H, W)."""
    height, width = (min(pair) for pair in zip(above.shape[-2:], mask.shape))
    mixed = below.clone()
    part = mixed[..., :height, :width]
    mixed[..., :height, :width] = torch.where(mask[:height, :width], above[..., :height, :width].to(part.dtype), part)
    return mixed
