"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159), in PyTorch.

Letters: B images, S = sum of H*W over L levels, M heads, D channels of a head, Q queries, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKENDS = ("auto", "torch", "triton")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Attention-weighted sum of values sampled bilinearly at a few points per query, head and level.

    Args:
        value: (B, S, M, D) float, the levels flattened row by row, one after the other.
        spatial_shapes: (H, W) of each level.
        sampling_locations: (B, Q, M, L, P, 2) float, (x, y), 0 and 1 at the outer edges of a level; the value
            outside of a level is 0.
        attention_weights: (B, Q, M, L, P) float, usually summing to 1 over L and P.
        backend: "torch", "triton", or "auto" for the fastest that is available for ``value``'s device.

    Returns:
        (B, Q, M * D)
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")
    B, S, M, D = value.shape
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    if sum(h * w for h, w in shapes) != S:
        raise ValueError(f"value has {S} positions, spatial_shapes {shapes} have {sum(h * w for h, w in shapes)}")
    Q, P = sampling_locations.shape[1], sampling_locations.shape[4]
    output = value.new_zeros(B * M, D, Q)
    grids = 2 * sampling_locations - 1
    levels = value.split([h * w for h, w in shapes], dim=1)
    for level, ((height, width), level_value) in enumerate(zip(shapes, levels)):
        planes = level_value.flatten(2).transpose(1, 2).reshape(B * M, D, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B*M, Q, P, 2)
        sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weights = attention_weights[:, :, :, level].transpose(1, 2).reshape(B * M, 1, Q, P)
        output = output + (sampled * weights).sum(-1)
    return output.view(B, M * D, Q).transpose(1, 2)


class MSDeformAttn(nn.Module):
    """Deformable attention of queries to a feature pyramid; state-dict names are the official ones."""

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} must be a multiple of n_heads {n_heads}")
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Point k of head m starts k + 1 cells away in direction 2 pi m / M, with equal weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2.0 * math.pi / self.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().max(-1, keepdim=True).values
        steps = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[:, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, reference_points: Tensor, inputs: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C), features plus position encoding.
            reference_points: (Q, 2), (x, y) in [0, 1], the same on every level.
            inputs: (B, S, C), the flattened pyramid.
            spatial_shapes: (H, W) of each level.

        Returns:
            (B, Q, C)
        """
        B, Q, _ = query.shape
        M, L, P = self.n_heads, self.n_levels, self.n_points
        value = self.value_proj(inputs).unflatten(-1, (M, -1))
        offsets = self.sampling_offsets(query).view(B, Q, M, L, P, 2)
        sizes = offsets.new_tensor([(w, h) for h, w in spatial_shapes])
        locations = reference_points[:, None, None, None] + offsets / sizes[:, None]
        weights = self.attention_weights(query).view(B, Q, M, L * P).softmax(-1).view(B, Q, M, L, P)
        return self.output_proj(ms_deform_attn(value, spatial_shapes, locations, weights))
