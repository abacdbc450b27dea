"""FLOPs and turns of the benchmarks; times themselves are not asserted."""

from __future__ import annotations

import torch

from benchmarks.common import flops, in_turns


def test_flops_by_hand() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert flops(lambda: a + a) == 0


def test_flops_of_layers_in_inference_mode_and_backward() -> None:
    convolution, x = torch.nn.Conv2d(3, 8, 3), torch.randn(2, 3, 10, 6)
    forward = 2 * 2 * 8 * 3 * 9 * (8 * 4)

    def inference() -> None:
        with torch.inference_mode():
            convolution(x)

    assert flops(inference) == forward
    assert flops(lambda: convolution(x).sum().backward()) == 2 * forward  # of the weights; the input asks for none
    x.requires_grad_()
    assert flops(lambda: convolution(x).sum().backward()) == 3 * forward


def test_turns() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert in_turns(functions, 2, clock=lambda: float(next(ticks))) == {"a": 1.0, "b": 1.0}
    assert calls == ["a", "b"] * 3  # the first round warms up
