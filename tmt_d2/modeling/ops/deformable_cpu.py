"""Deformable attention on the CPU as two loops compiled at run time by Numba (an optional dependency, no compiler).

PyTorch's own operators write every sampled value to memory before they are weighted and summed; here each query's sum
stays in registers: about a tenth of the time and no extra memory. Shapes and letters as in ``deformable_attention``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

# Sums may be reordered, but NaN must not be assumed away: a diverged model has to show it, not to read out of bounds.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_jit = numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
_inline = numba.njit(fastmath=_FAST, cache=True, error_model="numpy", inline="always")


@_inline
def _corners(x, y, width, height, start):  # type: ignore[no-untyped-def]
    """The four pixels around (x, y): their rows in the value tensor, True where they are inside, and the fractions."""
    left, top = int(np.floor(x)), int(np.floor(y))
    fx, fy = x - left, y - top
    x0, x1 = max(left, 0), min(left + 1, width - 1)
    y0, y1 = max(top, 0), min(top + 1, height - 1)
    in_x0, in_x1 = left >= 0, left + 1 < width
    in_y0, in_y1 = top >= 0, top + 1 < height
    row0, row1 = start + y0 * width, start + y1 * width
    return row0 + x0, row0 + x1, row1 + x0, row1 + x1, in_x0, in_x1, in_y0, in_y1, fx, fy


@_jit
def _forward(value, sizes, starts, locations, weights, output):  # type: ignore[no-untyped-def]
    B, _, M, D = value.shape
    Q, L, P = locations.shape[1], locations.shape[3], locations.shape[4]
    half, one = value.dtype.type(0.5), value.dtype.type(1)
    for item in numba.prange(B * Q):
        b, q = item // Q, item % Q
        for m in range(M):
            total = output[b, q, m]
            total[:] = 0
            for level in range(L):
                height, width, start = sizes[level, 0], sizes[level, 1], starts[level]
                for p in range(P):
                    x = locations[b, q, m, level, p, 0] * width - half
                    y = locations[b, q, m, level, p, 1] * height - half
                    if x != x or y != y:
                        total[:] = np.nan
                        continue
                    if x <= -1 or y <= -1 or x >= width or y >= height:
                        continue
                    i00, i01, i10, i11, x0, x1, y0, y1, fx, fy = _corners(x, y, width, height, start)
                    w = weights[b, q, m, level, p]
                    w00 = w * (one - fx) * (one - fy) * (x0 and y0)
                    w01 = w * fx * (one - fy) * (x1 and y0)
                    w10 = w * (one - fx) * fy * (x0 and y1)
                    w11 = w * fx * fy * (x1 and y1)
                    v00, v01, v10, v11 = value[b, i00, m], value[b, i01, m], value[b, i10, m], value[b, i11, m]
                    for d in range(D):
                        total[d] += w00 * v00[d] + w01 * v01[d] + w10 * v10[d] + w11 * v11[d]


@_jit
def _backward(  # type: ignore[no-untyped-def]
    grad, value, sizes, starts, locations, weights, grad_value, grad_locations, grad_weights
):
    B, _, M, D = value.shape
    Q, L, P = locations.shape[1], locations.shape[3], locations.shape[4]
    half, one, zero = value.dtype.type(0.5), value.dtype.type(1), value.dtype.type(0)
    for item in numba.prange(B * M):  # one head of one image a task: no two tasks add to the same value
        b, m = item // M, item % M
        for q in range(Q):
            g = grad[b, q, m]
            for level in range(L):
                height, width, start = sizes[level, 0], sizes[level, 1], starts[level]
                for p in range(P):
                    x = locations[b, q, m, level, p, 0] * width - half
                    y = locations[b, q, m, level, p, 1] * height - half
                    if x != x or y != y or x <= -1 or y <= -1 or x >= width or y >= height:
                        grad_weights[b, q, m, level, p] = zero
                        grad_locations[b, q, m, level, p, 0] = zero
                        grad_locations[b, q, m, level, p, 1] = zero
                        continue
                    i00, i01, i10, i11, x0, x1, y0, y1, fx, fy = _corners(x, y, width, height, start)
                    w = weights[b, q, m, level, p]
                    k00, k01 = one * (x0 and y0), one * (x1 and y0)
                    k10, k11 = one * (x0 and y1), one * (x1 and y1)
                    c00, c01 = (one - fx) * (one - fy), fx * (one - fy)
                    c10, c11 = (one - fx) * fy, fx * fy
                    v00, v01, v10, v11 = value[b, i00, m], value[b, i01, m], value[b, i10, m], value[b, i11, m]
                    s00, s01, s10, s11 = zero, zero, zero, zero
                    for d in range(D):
                        s00 += g[d] * v00[d]
                        s01 += g[d] * v01[d]
                        s10 += g[d] * v10[d]
                        s11 += g[d] * v11[d]
                    s00, s01, s10, s11 = s00 * k00, s01 * k01, s10 * k10, s11 * k11
                    grad_weights[b, q, m, level, p] = c00 * s00 + c01 * s01 + c10 * s10 + c11 * s11
                    grad_locations[b, q, m, level, p, 0] = w * width * ((s01 - s00) * (one - fy) + (s11 - s10) * fy)
                    grad_locations[b, q, m, level, p, 1] = w * height * ((s10 - s00) * (one - fx) + (s11 - s01) * fx)
                    d00, d01 = grad_value[b, i00, m], grad_value[b, i01, m]
                    d10, d11 = grad_value[b, i10, m], grad_value[b, i11, m]
                    w00, w01, w10, w11 = w * c00 * k00, w * c01 * k01, w * c10 * k10, w * c11 * k11
                    for d in range(D):  # one corner after the other: clamped corners can be the same pixel
                        d00[d] += w00 * g[d]
                    for d in range(D):
                        d01[d] += w01 * g[d]
                    for d in range(D):
                        d10[d] += w10 * g[d]
                    for d in range(D):
                        d11[d] += w11 * g[d]


class _Attention(torch.autograd.Function):
    """Saves its inputs only: (B, Q, M, L, P) weights and locations, nothing that was sampled."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, spatial_shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        value, locations, weights = (tensor.detach().contiguous() for tensor in (value, locations, weights))
        ctx.save_for_backward(value, locations, weights)
        ctx.spatial_shapes = spatial_shapes
        B, _, M, D = value.shape
        output = value.new_empty(B, locations.shape[1], M, D)
        sizes, starts = _level_tables(spatial_shapes)
        _use_torch_threads()
        _forward(value.numpy(), sizes, starts, locations.numpy(), weights.numpy(), output.numpy())
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        value, locations, weights = ctx.saved_tensors
        grads = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
        sizes, starts = _level_tables(ctx.spatial_shapes)
        inputs = (grad.contiguous().numpy(), value.numpy(), sizes, starts, locations.numpy(), weights.numpy())
        _use_torch_threads()
        _backward(*inputs, *(each.numpy() for each in grads))
        return *grads, None


def ms_deform_attn_cpu(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As ``ms_deform_attn``, for float32 or float64 tensors on the CPU -> (B, Q, M, D)."""
    return _Attention.apply(value, locations, weights, tuple(spatial_shapes))


def _level_tables(spatial_shapes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.array(spatial_shapes, np.int64)
    return sizes, np.concatenate([[0], np.cumsum(sizes.prod(1))[:-1]]).astype(np.int64)


def _use_torch_threads() -> None:
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:  # Numba's OpenMP layer sets the count of the whole process when it starts
        torch.set_num_threads(threads)
