"""Ground-truth masks of a batch, made on the device of its labels so that loaders only ship uint8 maps.

Shapes: B images, H x W pixels, N classes that occur in an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tmt_d2.data.datasets.label_spaces import IGNORE


def semantic_targets(sem_seg: Tensor, ignore: int = IGNORE) -> list[dict[str, Tensor]]:
    """One binary mask for each class that occurs in an image, and where there is one.

    Args:
        sem_seg: (B, H, W) or (H, W) integer train ids in [0, 255], on any device.
        ignore: id that belongs to no mask.

    Returns:
        For each image ``labels`` (N,) long, ascending, ``masks`` (N, H, W) bool, True inside the class,
        and ``labelled`` (H, W) bool, False at ignored pixels. N = 0 where every pixel is ignored.
    """
    if sem_seg.dim() not in (2, 3):
        raise ValueError(f"semantic_targets: expected labels (B, H, W) or (H, W), got {tuple(sem_seg.shape)}")
    batch = sem_seg if sem_seg.dim() == 3 else sem_seg[None]
    present = torch.zeros(len(batch), 256, dtype=torch.bool, device=batch.device)
    present.scatter_(1, batch.flatten(1).long(), True)
    present[:, ignore] = False
    image, labels = present.nonzero(as_tuple=True)  # the one synchronisation with the host
    counts = torch.bincount(image, minlength=len(batch)).tolist()
    return [
        {"labels": ids, "masks": seg[None] == ids[:, None, None].to(seg.dtype), "labelled": seg != ignore}
        for seg, ids in zip(batch, labels.split(counts))
    ]


def padded_labels(
    batched_inputs: Sequence[Mapping[str, Any]], size: Sequence[int], device: torch.device, ignore: int = IGNORE
) -> Tensor:
    """ "sem_seg" (h, w) of every record -> (B, *size) long train ids, ``ignore`` at padding."""
    labels = torch.full((len(batched_inputs), *size), ignore, dtype=torch.long, device=device)
    for padded, record in zip(labels, batched_inputs):
        sem_seg = record["sem_seg"]
        padded[: sem_seg.shape[-2], : sem_seg.shape[-1]] = sem_seg.to(device, non_blocking=True)
    return labels
