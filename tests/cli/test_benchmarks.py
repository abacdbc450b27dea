"""FLOPs and turns of the benchmarks; times themselves are not asserted."""

from __future__ import annotations

import torch

from benchmarks.common import flops


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
