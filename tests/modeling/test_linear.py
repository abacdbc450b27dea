"""The linear layers against ``nn.Linear``: the same numbers, the same gradients, by another route."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tmt_d2.modeling.ops.linear import Linear, linear


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (2, 3, 6), (2, 0, 6), (3, 2, 2, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
def test_as_pytorch_and_its_gradients(shape: tuple[int, ...], dtype: torch.dtype, relu: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator, dtype=dtype) for size in (shape, (4, 6), (4,))]
    inputs = [tensor.requires_grad_() for tensor in tensors]
    expected = F.linear(*inputs)
    expected = F.relu(expected) if relu else expected
    found = linear(*inputs, relu=relu)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for gradient, reference in zip(torch.autograd.grad(found.square().sum(), inputs), wanted):
        torch.testing.assert_close(gradient, reference)


def test_rows_that_do_not_lie_one_after_the_other() -> None:
    x, layer = torch.randn(2, 6, 5).transpose(1, 2), Linear(6, 4, bias=False)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


def test_a_whole_float32_product_takes_the_fast_route_and_nothing_else_does(monkeypatch) -> None:
    taken = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: taken.append(1) or convolve(*args))
    layer = Linear(6, 4)
    layer(torch.randn(5, 6))
    assert len(taken) == 1
    torch.set_num_threads(1)  # there PyTorch's convolution is no faster
    layer(torch.randn(5, 6))
    torch.set_num_threads(2)
    layer.double()(torch.randn(5, 6).double())
    torch.export.export(layer.float(), (torch.randn(5, 6),))
    assert len(taken) == 1
