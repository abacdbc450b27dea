"""ClassMix (arXiv 2007.07936): some classes of a labeled image are pasted onto an unlabeled one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.utils.randomness import derived_seed

DONOR_STREAM = (2, 1)  # of the random draws for one sample

T = TypeVar("T")


def classmix_mask(label: Tensor, size: torch.Size) -> Tensor:
    """Return where an image of ``size`` (H, W) is pasted over, bool: at half of the classes of ``label`` (h, w).

    Of an odd number the larger half, drawn by the CPU's generator. Both images are aligned at the top left.
    """
    classes = label.unique()
    classes = classes[classes != IGNORE]
    chosen = torch.randperm(len(classes))[: (len(classes) + 1) // 2].to(label.device)
    height, width = (min(pair) for pair in zip(label.shape, size))
    mask = torch.zeros(size, dtype=torch.bool, device=label.device)
    mask[:height, :width] = torch.isin(label[:height, :width], classes[chosen])
    return mask


def paste(below: Tensor, above: Tensor, mask: Tensor) -> Tensor:
    """Return ``above`` (..., h, w) where ``mask`` (H, W) is True, and else ``below`` (..., H, W)."""
    height, width = (min(pair) for pair in zip(above.shape[-2:], mask.shape))
    mixed = below.clone()
    part = mixed[..., :height, :width]
    mixed[..., :height, :width] = torch.where(mask[:height, :width], above[..., :height, :width].to(part.dtype), part)
    return mixed


def donor_of(index: int, count: int, donors: Sequence[T], seed: int) -> T:
    """Draw the donor for image ``index`` of ``count``, from the same block of the batch.

    A batch consists of equal blocks (``StepSampler``). Since a donor never comes from another block, it does not depend
    on how processes and micro-batches share the batch.
    """
    first = index * len(donors) // count
    end = max((index + 1) * len(donors) // count, first + 1)
    return donors[first + derived_seed(seed, *DONOR_STREAM) % (end - first)]
