"""Outputs of the decoder, with mask predictions kept as two factors.

A mask is mask_logits[b, q, y, x] = embeddings[b, q] . features[b, :, y, x]. Training needs a few points and the few
matched queries, attention small maps, so the (B, Q, H/4, W/4) maps of all decoder outputs are never computed. Bilinear
sampling is linear: the product of sampled features is the sampled product.

Letters: B images, Q queries, C channels, N classes, (H, W) the size of the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Predictions of the queries: pred_logits, (B, Q, N + 1) of the classes and "no object"; pred_masks."""

    pred_logits: Tensor
    pred_masks: MaskLogits


class DecoderOutputs(QueryOutputs):
    """Predictions after the last layer; aux_outputs: before each layer, in order."""

    aux_outputs: list[QueryOutputs]


def outputs_of(outputs: DecoderOutputs, indices: Sequence[int]) -> DecoderOutputs:
    """Return the outputs of some images of the batch."""
    if len(indices) == len(outputs["pred_logits"]):
        return outputs
    index = torch.tensor(indices, device=outputs["pred_logits"].device)
    features = outputs["pred_masks"].features[index]  # shared by all layers

    def select(layer: QueryOutputs) -> QueryOutputs:
        masks = MaskLogits(layer["pred_masks"].embeddings[index], features)
        return {"pred_logits": layer["pred_logits"][index], "pred_masks": masks}

    return {**select(outputs), "aux_outputs": [select(layer) for layer in outputs["aux_outputs"]]}
