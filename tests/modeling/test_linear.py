"""The linear layers against ``nn.Linear``: the same numbers, the same gradients, by another route."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from tmt_d2.modeling.ops.linear import MIN_ROWS, Linear, inner, linear


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


SHAPES = [(6,), (1, 6), (5, 6), (2, 3, 6), (2, 0, 6), (3, 2, 2, 6), (MIN_ROWS, 6), (3, MIN_ROWS // 2 + 1, 6)]


@pytest.mark.parametrize("shape", SHAPES)
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
    wanted = torch.autograd.grad(expected.square().mean(), inputs)
    for gradient, reference in zip(torch.autograd.grad(found.square().mean(), inputs), wanted):
        torch.testing.assert_close(gradient, reference)


def test_rows_that_do_not_lie_one_after_the_other() -> None:
    x, layer = torch.randn(2, 6, MIN_ROWS).transpose(1, 2), Linear(6, 4, bias=False)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


@pytest.mark.parametrize("a_shape, b_rows", [((3, 5), MIN_ROWS), ((MIN_ROWS,), 4), ((2, 3), 4)])
@pytest.mark.parametrize("empty", ["", "a", "b"])
def test_inner_with_many_and_with_no_rows(a_shape: tuple[int, ...], b_rows: int, empty: str) -> None:
    a, b = torch.randn(*a_shape, 6), torch.randn(b_rows, 6)
    a, b = a[:0] if empty == "a" else a, b[:0] if empty == "b" else b
    torch.testing.assert_close(inner(a, b), torch.inner(a, b))


def routes(function, *args) -> set[str]:
    """Names of the matrix products and convolutions that PyTorch runs."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function(*args)
    names = {event.key for event in recorded.key_averages()}
    return names & {"aten::addmm", "aten::mkldnn_convolution", "aten::_slow_conv2d_forward"}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_many_float32_rows_go_to_onednn_and_nothing_else_does() -> None:
    layer = Linear(64, 4)
    assert routes(layer, torch.randn(1, MIN_ROWS, 64)) == {"aten::mkldnn_convolution"}
    assert routes(layer, torch.randn(1, MIN_ROWS - 1, 64)) == {"aten::addmm"}
    exported = torch.export.export(layer, (torch.randn(1, MIN_ROWS, 64),))
    assert not [node for node in exported.graph.nodes if "conv" in str(node.target)]
    assert routes(layer.double(), torch.randn(1, MIN_ROWS, 64).double()) == {"aten::addmm"}
