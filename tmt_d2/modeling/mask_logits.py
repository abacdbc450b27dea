"""Mask predictions kept as the two factors they are the product of.

A mask is mask_logits[b, q, y, x] = embeddings[b, q] . features[b, :, y, x]. Training looks at a few points and at the
few matched queries, attention at small maps, so the (B, Q, H/4, W/4) maps of all decoder outputs never need to exist.
Bilinear sampling is linear, hence sampling the features and then multiplying gives what sampling the masks would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskLogits:
    """embeddings: (B, Q, C); features: (B, C, H, W)."""

    embeddings: Tensor
    features: Tensor

    def dense(self) -> Tensor:
        """(B, Q, H, W)"""
        return torch.einsum("bqc,bchw->bqhw", self.embeddings, self.features)

    def resized(self, features: Tensor) -> Tensor:
        """(B, Q, h, w): the masks at the size of ``features``, which are ``self.features`` resized to (B, C, h, w)."""
        return torch.einsum("bqc,bchw->bqhw", self.embeddings, features)
