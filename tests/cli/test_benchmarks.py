"""FLOPs and bytes that the benchmarks count; times are not asserted."""

from __future__ import annotations

import torch

from benchmarks.common import Function, flops, operations


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


def test_bytes_are_those_of_inputs_and_outputs_and_views_move_none() -> None:
    x, y = torch.randn(4, 6), torch.randn(6, 5)

    def moved(function: Function) -> int:
        return sum(operation.bytes for operation in operations(function))

    assert moved(lambda: x @ y) == 4 * (4 * 6 + 6 * 5 + 4 * 5)
    assert moved(lambda: x.relu()) == 4 * 2 * 24
    assert moved(lambda: x.relu_()) == 4 * 24  # one tensor, counted once
    assert moved(lambda: x[1:].t().unsqueeze(0)) == 0
    row = torch.randn(1, 6)
    assert moved(lambda: row.expand(4, 6) + x) == 4 * (6 + 24 + 24)
