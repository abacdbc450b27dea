"""Sine position encoding of a feature map (DETR, arXiv 2005.12872, normalized form)."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from tmt_d2.modeling.tracing import is_traced


def sine_position_encoding(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """(channels, height, width) on ``like``'s device, float32: the first half of the channels encodes y, the second x.

    Coordinates run over (0, 2 pi]; frequencies fall geometrically to 1 / 10,000, sine and cosine interleaved. The last
    few sizes are cached; treat the result as read-only.
    """
    if is_traced():  # traced tensors must not be cached
        return _encode(height, width, channels, like.device)
    return _encode_once(height, width, channels, like.device)


def _encode(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=device)
    period = 10000 ** (2 * (index // 2) / half)

    def encode(size: int) -> Tensor:
        position = torch.arange(1, size + 1, dtype=torch.float32, device=device) / (size + 1e-6) * 2 * math.pi
        phase = position[:, None] / period
        return torch.stack([phase[:, 0::2].sin(), phase[:, 1::2].cos()], 2).flatten(1).T  # (half, size)

    y = encode(height)[:, :, None].expand(half, height, width)
    x = encode(width)[:, None, :].expand(half, height, width)
    return torch.cat([y, x])


_encode_once = functools.lru_cache(maxsize=16)(_encode)
