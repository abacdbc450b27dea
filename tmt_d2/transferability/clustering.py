"""Adaptive clustering of pixels into regions (Eqs. 6-9 of arXiv 2504.05774).

Letters: B images, C channels, (H, W) a feature level, c cell size, (R, S) = (ceil(H/c), ceil(W/c)) the grid of regions.
Work is done cell by cell, because all c*c pixels of a cell are compared with the same 3 x 3 centers:
time O(9 H W C) an iteration, memory O(9 H W) besides a copy of the features; no pixel-by-region matrix exists.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBORS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))  # row by row; entry 4 is the pixel's own cell
OWN = NEIGHBORS.index((0, 0))


class Regions(NamedTuple):
    """Adaptive regions of a feature level.

    centers: (B, C, R, S) float32, f(r); 0 for a cell without a valid pixel.
    assignment: (B, 9, H, W) float32, a(p, r) for the 3 x 3 cells around each pixel's own, row by row; sums to 1, is 0
        outside the grid, and sums to 0 at invalid pixels.
    index: (B, H, W) long, flat index i * S + j of the region with the largest assignment; -1 at invalid pixels.

    NaN in a valid feature propagates to its region.
    """

    centers: Tensor
    assignment: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of this name


def adaptive_clustering(
    features: Tensor, cell_size: int, iterations: int = 6, kappa: float = 10.0, valid: Tensor | None = None
) -> Regions:
    """Group pixels into regions that start as square cells and adapt to the features.

    Each iteration takes the assignment-weighted mean of the features as centers f(r) (Eq. 6), then assigns every pixel
    to the <= 9 regions around its own cell in proportion to their similarity exp(kappa * cos(f(r), chi(p))) (Eq. 7).
    With ``iterations=0`` the regions are the square cells themselves ("w/o ACTE").

    Args:
        features: chi, (B, C, H, W) float.
        cell_size: c; sizes that are no multiple of it leave smaller cells at the bottom and right.
        kappa: sharpness of the assignment.
        valid: (B, H, W) bool, False = padding, which belongs to no region and changes no center; None = all valid.
    """
    if features.dim() != 4:
        raise ValueError(f"features must be (B, C, H, W), got shape {tuple(features.shape)}")
    if cell_size < 1 or iterations < 0:
        raise ValueError(f"cell_size {cell_size} must be >= 1 and iterations {iterations} >= 0")
    B, _, H, W = features.shape
    if valid is not None and valid.shape != (B, H, W):
        raise ValueError(f"valid has shape {tuple(valid.shape)}, features need {(B, H, W)}")
    with torch.autocast(features.device.type, enabled=False):
        return _cluster(features.float(), cell_size, iterations, kappa, valid)


def _cluster(features: Tensor, c: int, iterations: int, kappa: float, valid: Tensor | None) -> Regions:
    B, C, H, W = features.shape
    if valid is None:
        valid = features.new_ones(B, H, W, dtype=torch.bool)
    else:
        features = features.masked_fill(~valid[:, None], 0)  # 0 * inf would not be 0
    inside = _to_cells(valid[:, None].to(features.dtype), c)[..., 0]  # (B, R, S, c*c); the fill of the last cells is 0
    pixels = _to_cells(features, c)  # (B, R, S, c*c, C)
    S = inside.shape[2]
    sharpness = kappa / pixels.norm(dim=-1, keepdim=True).clamp(min=1e-12)  # (B, R, S, c*c, 1), kappa / |chi|

    mass = inside.sum(-1)  # a cell that starts without a pixel is no region
    exists = _neighborhood(mass[..., None])[..., 0] > 0  # (B, R, S, 9), False outside the grid
    absent = ~(exists[..., None, :] & (inside[..., None] > 0))  # (B, R, S, c*c, 9)
    assignment = inside.new_zeros(*inside.shape, 9)
    assignment[..., OWN] = inside
    centers = pixels.sum(-2) / mass.clamp(min=1)[..., None]  # (B, R, S, C)
    for iteration in range(iterations):
        if iteration:
            centers = _weighted_means(pixels, assignment)
        around = _neighborhood(F.normalize(centers, dim=-1))  # (B, R, S, 9, C)
        scores = pixels @ around.transpose(-2, -1) * sharpness  # (B, R, S, c*c, 9), kappa * cos of Eq. 7
        scores = scores.masked_fill(absent, float("-inf"))
        assignment = scores.softmax(-1).masked_fill(absent, 0.0)  # a NaN of a pixel stays

    centers = centers.masked_fill(mass[..., None] == 0, 0.0)
    assignment = _from_cells(assignment, c, H, W)  # (B, 9, H, W)
    return Regions(centers.permute(0, 3, 1, 2), assignment, _region_index(assignment, valid, c, S))


def _weighted_means(pixels: Tensor, assignment: Tensor) -> Tensor:
    """Eq. 6: (B, R, S, c*c, C), (B, R, S, c*c, 9) -> centers (B, R, S, C)."""
    sums = _sum_from_neighbors(assignment.transpose(-2, -1) @ pixels)
    mass = _sum_from_neighbors(assignment.sum(-2)[..., None])
    return sums / mass.clamp(min=torch.finfo(mass.dtype).tiny)


def _region_index(assignment: Tensor, valid: Tensor, c: int, S: int) -> Tensor:
    H, W = valid.shape[1:]
    neighbor = assignment.argmax(1)  # (B, H, W) in 0 ... 8
    neighbor = neighbor.masked_fill(assignment[:, OWN].isnan(), OWN)  # its center is NaN, too
    row = torch.arange(H, device=valid.device)[:, None] // c + neighbor // 3 - 1
    column = torch.arange(W, device=valid.device) // c + neighbor % 3 - 1
    return torch.where(valid, row * S + column, -1)


def _to_cells(maps: Tensor, c: int) -> Tensor:
    """(B, C, H, W) -> (B, R, S, c*c, C), zero where the last cells reach beyond the map."""
    B, C, H, W = maps.shape
    if H % c or W % c:  # padding by nothing would copy
        maps = F.pad(maps, (0, -W % c, 0, -H % c))
    R, S = maps.shape[2] // c, maps.shape[3] // c
    return maps.view(B, C, R, c, S, c).permute(0, 2, 4, 3, 5, 1).reshape(B, R, S, c * c, C)


def _from_cells(cells: Tensor, c: int, H: int, W: int) -> Tensor:
    """The inverse: (B, R, S, c*c, C) -> (B, C, H, W)."""
    B, R, S, _, C = cells.shape
    maps = cells.view(B, R, S, c, c, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, R * c, S * c)
    return maps[:, :, :H, :W]


def _neighborhood(grid: Tensor) -> Tensor:
    """(B, R, S, C) -> (B, R, S, 9, C): the values of the 3 x 3 cells around each cell, 0 outside the grid."""
    R, S = grid.shape[1:3]
    padded = _with_border(grid)
    return torch.stack([padded[:, 1 + dy : 1 + dy + R, 1 + dx : 1 + dx + S] for dy, dx in NEIGHBORS], 3)


def _sum_from_neighbors(sums: Tensor) -> Tensor:
    """Sum contributions (B, R, S, 9, C) of each cell to the 3 x 3 cells around it -> (B, R, S, C)."""
    R, S = sums.shape[1:3]
    given = _with_border(sums)
    total = sums.new_zeros(())
    for neighbor, (dy, dx) in enumerate(NEIGHBORS):  # out of place: slices written in place export as huge graphs
        total = total + given[:, 1 - dy : 1 - dy + R, 1 - dx : 1 - dx + S, neighbor]
    return total


def _with_border(grid: Tensor) -> Tensor:
    """(B, R, S, ...) -> (B, R + 2, S + 2, ...), a ring of zeros around."""
    return F.pad(grid, (0, 0) * (grid.dim() - 3) + (1, 1, 1, 1))
