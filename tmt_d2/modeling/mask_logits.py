"""What the decoder gives, with mask predictions kept as the two factors they are the product of.

A mask is mask_logits[b, q, y, x] = embeddings[b, q] . features[b, :, y, x]. Training looks at a few points and at the
few matched queries, attention at small maps, so the (B, Q, H/4, W/4) maps of all decoder outputs never need to exist.
Bilinear sampling is linear, hence sampling the features and then multiplying gives what sampling the masks would give.

Letters: B images, Q queries, C channels, N classes, (H, W) the size of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

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


class QueryOutputs(TypedDict):
    """What the queries say at one place in the decoder: pred_logits, (B, Q, N + 1) of the classes and "no object";
    pred_masks."""

    pred_logits: Tensor
    pred_masks: MaskLogits


class DecoderOutputs(QueryOutputs):
    """... after the last layer; aux_outputs: before each layer, in order."""

    aux_outputs: list[QueryOutputs]
