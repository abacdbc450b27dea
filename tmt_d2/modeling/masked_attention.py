"""Key positions that a query may attend to, and the attention restricted to them.

Letters: B images, Q queries, (H, W) one level of the pyramid, K = H*W key positions, M heads, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmt_d2.errors import UserError
from tmt_d2.modeling.ops.linear import Linear, linear


class MaskedPositions(NamedTuple):
    """Key positions of each query, and the fall-back that was used.

    predicted: (B, Q, K) bool, the mask rule alone. allowed: (B, Q, K) bool, True = may be attended to. mask_empty:
    (B, Q) bool, ``predicted`` has no position, so every valid position is allowed. none_transferable: (B, Q) bool,
    ``predicted`` has positions, but none of them is transferable, so ``allowed`` is ``predicted``.
    """

    predicted: Tensor
    allowed: Tensor
    mask_empty: Tensor
    none_transferable: Tensor

    def as_maps(self, height: int, width: int) -> MaskedPositions:
        """Return the same with ``predicted`` and ``allowed`` as (B, Q, H, W)."""
        size = height, width
        return self._replace(predicted=self.predicted.unflatten(-1, size), allowed=self.allowed.unflatten(-1, size))


def masked_positions(
    mask_logits: Tensor,
    transferable: Tensor | None = None,
    valid: Tensor | None = None,
    rule: str = "foreground",
    threshold: float = 0.5,
) -> MaskedPositions:
    """Return the predicted mask AND the transferability (Eq. 13), with fall-backs for queries without any position.

    Args:
        mask_logits: (B, Q, H, W), the predicted masks at the size of the level; M = sigmoid(mask_logits).
        transferable: (B, H, W) bool, True = may be attended to, from ``transferability_mask``; None = everywhere.
        valid: (B, H, W) bool, False = padding; None = no padding.
        rule: "foreground": M >= threshold (Mask2Former); "uncertain": M <= threshold (as Eq. 13 is printed).
        threshold: lambda_M.

    Returns:
        the positions; a row of ``allowed`` that is empty after the conjunction falls back to the predicted mask alone,
        and if that is empty too, to every valid position; padding is never True.
    """
    probability = mask_logits.sigmoid()
    if rule == "foreground":
        predicted = probability >= threshold
    elif rule == "uncertain":
        predicted = probability <= threshold
    else:
        raise ValueError(f"rule is {rule!r}: choose foreground or uncertain")
    predicted = predicted.flatten(2)
    everywhere = torch.ones_like(predicted[:, :1]) if valid is None else valid.flatten(1)[:, None]
    if valid is not None:
        predicted = predicted & everywhere
    mask_empty = ~predicted.any(-1)
    allowed, none_transferable = predicted, torch.zeros_like(mask_empty)
    if transferable is not None:
        allowed = predicted & transferable.flatten(1)[:, None]
        none_transferable = ~allowed.any(-1) & ~mask_empty
        allowed = allowed | (predicted & none_transferable[..., None])  # ONNX Runtime has no torch.where for bool
    return MaskedPositions(predicted, allowed | (everywhere & mask_empty[..., None]), mask_empty, none_transferable)


class MultiheadAttention(nn.Module):
    """Multi-head attention, batch first, with the parameters and names of ``nn.MultiheadAttention``.

    Unlike that module it takes one boolean mask for all heads (True = may be attended to) and lets PyTorch choose a
    kernel that never stores the attention weights.
    """

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"must divide {embed_dim} channels", key="MODEL.MASK_FORMER.NHEADS", value=num_heads)
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3))
        q, k, v = (
            linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x, weight, bias in inputs
        )
        return q, k, v  # each (B, M, length, C / M)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """query (B, Q, C), key and value (B, K, C), allowed (B, Q, K) bool -> (B, Q, C)."""
        q, k, v = self._project(query, key, value)
        mask = None if allowed is None else allowed[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Return the attention weights of ``forward``: (B, M, Q, K), each row sums to 1."""
        q, k, _ = self._project(query, key, key)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], float("-inf"))
        return scores.softmax(-1)
