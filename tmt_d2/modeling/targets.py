"""Ground-truth masks of a batch, made on the device of its labels so that loaders only ship label maps.

Letters: B images, (H, W) pixels, T classes that occur in an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MaskTargets(NamedTuple):
    """One binary mask for each class that occurs in an image.

    labels: (T,) long class indices, ascending. masks: (T, H, W) bool, True inside the class. valid: (H, W) bool, False
    at pixels that the mask losses leave out; None = no pixel is left out. weights: (T,) float, factors of the mask
    losses of each mask; None = 1.
    """

    labels: Tensor
    masks: Tensor
    valid: Tensor | None = None
    weights: Tensor | None = None


def semantic_targets(sem_seg: Tensor, ignore: int = 255) -> list[MaskTargets]:
    """Return the masks of each image; ``valid`` is False at ignored pixels.

    Args:
        sem_seg: (B, H, W) or (H, W) integer class indices in [0, 255], on any device.
        ignore: index of pixels that belong to no mask. T = 0 where every pixel is ignored.
    """
    if sem_seg.dim() not in (2, 3):
        raise ValueError(f"semantic_targets: expected labels (B, H, W) or (H, W), got {tuple(sem_seg.shape)}")
    batch = sem_seg if sem_seg.dim() == 3 else sem_seg[None]
    present = torch.zeros(len(batch), 256, dtype=torch.bool, device=batch.device)
    present.scatter_(1, batch.flatten(1).long(), True)
    present[:, ignore] = False
    image, labels = present.nonzero(as_tuple=True)  # the one synchronization with the host
    counts = torch.bincount(image, minlength=len(batch)).tolist()
    return [
        MaskTargets(ids, seg[None] == ids[:, None, None].to(seg.dtype), seg != ignore)
        for seg, ids in zip(batch, labels.split(counts))
    ]
