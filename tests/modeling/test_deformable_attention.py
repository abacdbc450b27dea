"""Deformable attention against loops that sample bilinearly by hand."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.errors import refuses
from tmt_d2.modeling import MSDeformAttn, ms_deform_attn
from tmt_d2.modeling.masked_attention import MultiheadAttention
from tmt_d2.modeling.ops import deformable_attention
from tmt_d2.modeling.ops.deformable_attention import _attend_torch, _attend_triton

SHAPES = [(3, 4), (2, 2), (1, 5)]


def inputs(
    B: int = 2, Q: int = 3, M: int = 2, D: int = 3, P: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """value, locations (some outside of the levels), weights"""
    generator = torch.Generator().manual_seed(0)
    S, L = sum(h * w for h, w in SHAPES), len(SHAPES)
    value = torch.randn(B, S, M, D, generator=generator, dtype=dtype)
    locations = torch.rand(B, Q, M, L, P, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(B, Q, M, L * P, generator=generator, dtype=dtype).softmax(-1).view(B, Q, M, L, P)
    return value, locations, weights


def attend_by_loops(value: np.ndarray, locations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    B, _, M, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    output = np.zeros((B, Q, M, D))
    for b, q, m, level, p in np.ndindex(B, Q, M, L, P):
        height, width = SHAPES[level]
        start = sum(h * w for h, w in SHAPES[:level])
        x = locations[b, q, m, level, p, 0] * width - 0.5  # 0 is the center of the first cell
        y = locations[b, q, m, level, p, 1] * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    output[b, q, m] += weights[b, q, m, level, p] * share * value[b, start + row * width + column, m]
    return output.reshape(B, Q, M * D)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_equals_loops(backend: str) -> None:
    value, locations, weights = inputs()
    found = ms_deform_attn(value, SHAPES, locations, weights, backend)
    np.testing.assert_allclose(found, attend_by_loops(value.numpy(), locations.numpy(), weights.numpy()), atol=1e-12)


def test_by_hand() -> None:
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)  # one level of 2 x 2

    def at(x: float, y: float) -> float:
        location = torch.tensor([x, y]).view(1, 1, 1, 1, 1, 2)
        return ms_deform_attn(value, [(2, 2)], location, torch.ones(1, 1, 1, 1, 1)).item()

    assert at(0.25, 0.25) == 1.0  # (x, y) of the first cell's center
    assert at(0.75, 0.25) == 2.0  # x runs along a row
    assert at(0.5, 0.5) == 2.5
    assert at(0.0, 0.25) == 0.5  # halfway to the zeros outside
    assert at(-0.25, 0.25) == 0.0
    assert at(5.0, 5.0) == 0.0


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_gradients(backend: str) -> None:
    value, locations, weights = (tensor.requires_grad_() for tensor in inputs(B=1, Q=2, D=2, P=1))
    attend = lambda v, x, a: ms_deform_attn(v, SHAPES, x, a, backend)  # noqa: E731
    assert torch.autograd.gradcheck(attend, (value, locations, weights))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_location_that_is_no_number_shows(backend: str) -> None:
    value, locations, weights = inputs(B=1, dtype=torch.float32)
    locations[0, 0, 0, 0, 0] = float("nan")
    output = ms_deform_attn(value, SHAPES, locations, weights, backend)
    assert output[0, 1:].isfinite().all()
    if backend == "numba":  # PyTorch's grid_sample reads such a point as outside
        assert output[0, 0].isnan().any()


def test_shapes_that_do_not_fit() -> None:
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="spatial_shapes"):
        ms_deform_attn(value, SHAPES[:1], locations, weights)
    with pytest.raises(ValueError, match="sampling_locations"):  # a fourth level would be ignored in silence
        ms_deform_attn(value, SHAPES, torch.cat([locations, locations[:, :, :, :1]], 3), weights)
    with pytest.raises(ValueError, match="attention_weights"):
        ms_deform_attn(value, SHAPES, locations, weights[..., :1])


@pytest.mark.parametrize("backend", ["cuda", "triton"])  # unknown; not for tensors on a CPU
def test_a_backend_is_not_replaced_in_silence(backend: str) -> None:
    value, locations, weights = inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=backend):
        ms_deform_attn(value, SHAPES, locations, weights, backend=backend)


def test_deformops_has_our_conventions(monkeypatch) -> None:
    """By its reference implementation for CPUs; the call is the one that runs its Triton kernels on a GPU."""
    registry = pytest.importorskip("deformops.registry", reason="deformops needs Python >= 3.12")
    msda, tensors = registry.msda, inputs(D=8, dtype=torch.float32)
    starts = torch.tensor([0, 12, 16])
    msda(tensors[0], torch.tensor(SHAPES), starts, *tensors[1:])  # the library loads its parts in its first call
    monkeypatch.setattr(registry, "msda", lambda *tensors, backend: msda(*tensors, backend=None))
    tensors = [tensor.requires_grad_() for tensor in tensors]
    found, expected = (attend(tensors[0], SHAPES, *tensors[1:]) for attend in (_attend_triton, _attend_torch))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, tensors, pull)
    for gradient, reference in zip(torch.autograd.grad(found, tensors, pull), wanted):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4)


class Kernel(torch.autograd.Function):
    """Stands for the Triton kernel of ``deformops``: every gradient has the precision of the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        return _attend_torch(value, SHAPES, locations, weights.unflatten(3, (len(SHAPES), -1)).to(value.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        tensors = [tensor.detach().float().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            value, locations, weights = tensors
            output = _attend_torch(value, SHAPES, locations, weights.unflatten(3, (len(SHAPES), -1)))
        return tuple(each.to(ctx.saved_tensors[0].dtype) for each in torch.autograd.grad(output, tensors, grad.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_triton_does_not_round_the_gradients_of_locations(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = SimpleNamespace(
        Backend=SimpleNamespace(TRITON="triton"),
        msda=lambda value, sizes, starts, locations, weights, backend: Kernel.apply(value, locations, weights),
    )
    monkeypatch.setitem(sys.modules, "deformops", SimpleNamespace(registry=registry))
    monkeypatch.setitem(sys.modules, "deformops.registry", registry)
    value, locations, weights = inputs(D=8, dtype=torch.float32)
    value = value.to(dtype)
    tensors = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    exact = [value.detach().float().requires_grad_(), *tensors[1:]]
    found, expected = _attend_triton(value, SHAPES, *tensors[1:]), _attend_torch(exact[0], SHAPES, *exact[1:])
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(found, tensors, pull)
    wanted = torch.autograd.grad(expected, exact, pull.float())
    assert gradients[0].dtype == dtype
    for gradient, reference in zip(gradients[1:], wanted[1:]):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, reference)
    if dtype != torch.float32:  # control: rounded ones would be told apart
        assert not torch.allclose(gradients[1], gradients[1].to(dtype).float(), rtol=1e-5)


def test_module_by_hand() -> None:
    """With the initial weights, each head averages the values one cell away on both levels."""
    module = MSDeformAttn(d_model=4, n_levels=2, n_heads=4, n_points=1)
    for projection in (module.value_proj, module.output_proj):
        torch.nn.init.eye_(projection.weight)
    shapes = [(3, 3), (3, 3)]
    values = torch.arange(9.0).repeat(2) + torch.tensor([0.0, 100.0]).repeat_interleave(9)
    pyramid = values[None, :, None].expand(1, 18, 4).contiguous()
    center = torch.tensor([[0.5, 0.5]])
    found = module(torch.randn(1, 1, 4), center, pyramid, shapes)
    # right, below, left, above of the middle cell (value 4), mean over the two levels
    torch.testing.assert_close(found.flatten(), torch.tensor([5.0, 7.0, 3.0, 1.0]) + 50)


def test_heads_must_divide_the_channels() -> None:
    for build in (lambda: MSDeformAttn(10, 3, 4, 4), lambda: MultiheadAttention(10, 4)):
        with refuses("MODEL.MASK_FORMER.NHEADS", 4):
            build()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sampling_locations_are_not_rounded(dtype: torch.dtype) -> None:
    """A map that holds its own column numbers, sampled at cell centers: rounded locations would read neighbors.

    bfloat16 has 8 bits, so near the right edge a rounded location would be off by half a cell.
    """
    width = 256  # a level of stride 8 of an image 2048 pixels wide
    value = torch.arange(width, dtype=dtype).view(1, width, 1, 1)  # exact in every dtype
    columns = torch.arange(0, width, 5)
    locations = torch.full((1, len(columns), 1, 1, 1, 2), 0.5)
    locations[0, :, 0, 0, 0, 0] = (columns + 0.5) / width
    weights = torch.ones(1, len(columns), 1, 1, 1, dtype=dtype)
    output = ms_deform_attn(value, [(1, width)], locations, weights, backend="torch")
    torch.testing.assert_close(output.flatten().float(), columns.float(), atol=0.02, rtol=0)


def test_numba_leaves_the_threads_of_pytorch_alone() -> None:
    """Numba's OpenMP layer sets the process's thread count when it starts, and with it the rounding of convolutions."""
    pytest.importorskip("numba")
    # conftest sets one thread; Numba starts once a process, here or in an earlier test
    value, locations = torch.randn(1, 6, 1, 2), torch.rand(1, 3, 1, 1, 2, 2)
    ms_deform_attn(value, [(2, 3)], locations, torch.rand(1, 3, 1, 1, 2), backend="numba")
    assert torch.get_num_threads() == 1


def _attend(queue: Any) -> None:
    torch.set_num_threads(1)
    queue.put(ms_deform_attn(*_fork_inputs()).tolist())


def _fork_inputs() -> tuple[torch.Tensor, list[tuple[int, int]], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    locations = torch.rand(1, 3, 1, 1, 2, 2, generator=generator)
    return torch.rand(1, 6, 1, 4, generator=generator), [(2, 3)], locations, torch.ones(1, 3, 1, 1, 2)


def test_a_forked_process_does_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(deformable_attention, "_numba_process", None)
    expected = ms_deform_attn(*_fork_inputs())
    assert deformable_attention._numba_process == os.getpid()
    assert deformable_attention._fastest_backend(expected) == "numba"
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_attend, args=(queue,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    torch.testing.assert_close(torch.tensor(queue.get()), expected)
