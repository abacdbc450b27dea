"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159): one function, three implementations of it.

Letters: B images, S = sum of H*W over L levels, M heads, D channels of a head, Q queries, P points.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmt_d2.errors import UserError
from tmt_d2.modeling.ops.linear import Linear
from tmt_d2.modeling.precision import at_least_float32
from tmt_d2.modeling.tracing import is_traced

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "numba", "triton")


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
        backend: "torch" (any device), "numba" (CPU) or "triton" (NVIDIA GPUs, by the library ``deformops``), or
            "auto": the fastest that is installed for ``value``'s device.

    Returns:
        (B, Q, M * D)

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
        ImportError: a backend, given by name, is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    if sum(h * w for h, w in shapes) != value.shape[1]:
        raise ValueError(
            f"value has {value.shape[1]} positions, spatial_shapes {shapes} have {sum(h * w for h, w in shapes)}"
        )
    B, _, M, _ = value.shape
    Q, P = sampling_locations.shape[1], sampling_locations.shape[4]
    for name, tensor, shape in (
        ("sampling_locations", sampling_locations, (B, Q, M, len(shapes), P, 2)),
        ("attention_weights", attention_weights, (B, Q, M, len(shapes), P)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    for name, device in (("numba", "cpu"), ("triton", "cuda")):
        if backend == name and value.device.type != device:
            raise ValueError(f"backend {name} needs tensors on {device}, got {value.device.type}")
    if backend == "auto":
        backend = _fastest_backend(value)
    attend = {"torch": _attend_torch, "numba": _attend_numba, "triton": _attend_triton}[backend]
    return attend(value, shapes, sampling_locations, attention_weights)


def _fastest_backend(value: Tensor) -> str:
    if is_traced():
        return "torch"
    backend = _installed_backend(value.device.type)
    return "torch" if backend == "numba" and _is_forked() else backend


_numba_process: int | None = None  # the first that used Numba


def _is_forked() -> bool:
    """Return True if this process was forked after Numba had run: its OpenMP threads end such a process."""
    if _numba_process in (None, os.getpid()):
        return False
    _warn_of_fork(os.getpid())
    return True


@functools.cache
def _warn_of_fork(process: int) -> None:
    logger.warning("process %d was forked after deformable attention ran: PyTorch instead of Numba", process)


@functools.cache
def _installed_backend(device_type: str) -> str:
    """Choose, and log, once per device type."""
    fastest = {"cpu": ("numba", "numba"), "cuda": ("deformops", "triton")}
    module, backend = fastest.get(device_type, ("", "torch"))
    if module:
        try:
            importlib.import_module(module)
        except ImportError:
            logger.info("deformable attention on %s: PyTorch (faster with `pip install %s`)", device_type, module)
            return "torch"
    logger.info("deformable attention on %s: %s", device_type, backend)
    return backend


def _attend_torch(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    B, _, M, D = value.shape
    Q, P = locations.shape[1], locations.shape[4]
    output = value.new_zeros(B * M, D, Q)
    grids = 2 * locations - 1
    levels = value.split([h * w for h, w in shapes], dim=1)
    for level, ((height, width), level_value) in enumerate(zip(shapes, levels)):
        planes = level_value.flatten(2).transpose(1, 2).reshape(B * M, D, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B*M, Q, P, 2)
        # the grid is never rounded: bfloat16 locations would be off by a cell on a wide level
        sampled = F.grid_sample(planes.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        level_weights = weights[:, :, :, level].transpose(1, 2).reshape(B * M, 1, Q, P)
        output = output + (sampled * level_weights).sum(-1)
    return output.to(value.dtype).view(B, M * D, Q).transpose(1, 2)


def _attend_numba(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    from tmt_d2.modeling.ops.deformable_cpu import ms_deform_attn_cpu  # Numba is optional

    global _numba_process
    _numba_process = _numba_process or os.getpid()
    dtype = torch.promote_types(value.dtype, torch.float32)
    output = ms_deform_attn_cpu(value.to(dtype), shapes, locations.to(dtype), weights.to(dtype))
    return output.flatten(2).to(value.dtype)


def _attend_triton(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    from deformops.registry import Backend, msda  # optional

    if value.dtype == torch.float64:  # the kernels have no double precision
        return _attend_torch(value, shapes, locations, weights)
    sizes = torch.tensor(shapes, device=value.device)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    # in float32 whatever the value is: the kernels give all gradients, those of locations too, in the value's precision
    output = msda(value.float(), sizes, starts, locations.float(), weights.float().flatten(3), backend=Backend.TRITON)
    return output.to(value.dtype)


class MSDeformAttn(nn.Module):
    """Deformable attention of queries to a feature pyramid; state-dict names are the official ones."""

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4):
        super().__init__()
        if d_model % n_heads:
            raise UserError(f"must divide {d_model} channels", key="MODEL.MASK_FORMER.NHEADS", value=n_heads)
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.sampling_offsets = Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)
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
        query = at_least_float32(query)
        with torch.autocast(query.device.type, enabled=False):  # rounded points would be off by parts of a cell
            offsets = self.sampling_offsets(query).view(B, Q, M, L, P, 2)
            weights = _softmax(self.attention_weights(query).view(B, Q, M, L * P)).unflatten(-1, (L, P))
        cells = reference_points.new_tensor([(1 / w, 1 / h) for h, w in spatial_shapes])
        locations = torch.addcmul(reference_points[:, None, None, None], offsets, cells[:, None])
        return self.output_proj(ms_deform_attn(value, spatial_shapes, locations, weights))


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension. PyTorch on a CPU needs a quarter of the time if the few values of a sum are not
    next to each other in memory."""
    if scores.device.type != "cpu" or is_traced():
        return scores.softmax(-1)
    return scores.movedim(-1, 1).contiguous().softmax(1).movedim(1, -1)
