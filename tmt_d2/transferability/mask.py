"""Positions of low transferability, which may be attended to (Eq. 12)."""

from __future__ import annotations

import torch
from torch import Tensor


def transferability_mask(logits: Tensor, p_t: float, valid: Tensor | None = None) -> Tensor:
    """T <= lambda_T (Eq. 12), the (1 - p_t) quantile of T = 1 - sigmoid(logits) over an image's valid positions.

    T falls as the logit rises, so ranks are taken on the logits: a confident discriminator rounds sigmoid to 0 or 1,
    and the ties would make the quantile meaningless.

    Args:
        logits: (B, H, W), logit of E, the probability that the position looks like the target domain.
        p_t: fraction in [0, 1) of positions to exclude, those with the highest T; of n positions floor(p_t * n) are
            excluded, fewer where positions tie with lambda_T, which stay.
        valid: (B, H, W) bool, False = padding, never True in the result; None = all valid.

    Returns:
        (B, H, W) bool, True = may be attended to.
    """
    if not 0 <= p_t < 1:
        raise ValueError(f"p_t is {p_t}: it is the excluded fraction of positions, so 0 <= p_t < 1")
    flat = logits.flatten(1)
    if valid is None:
        counts = torch.full((len(flat), 1), flat.shape[1], device=flat.device)
    else:
        flat = flat.masked_fill(~valid.flatten(1), float("inf"))
        counts = valid.flatten(1).sum(1, keepdim=True)
    excluded = (p_t * counts.double() + 1e-6).floor().long()  # 0.29 * 100 is 28.999...: still 29
    threshold = flat.sort(1).values.gather(1, excluded.clamp(max=flat.shape[1] - 1))
    kept = (flat >= threshold).view_as(logits)
    return kept if valid is None else kept & valid
