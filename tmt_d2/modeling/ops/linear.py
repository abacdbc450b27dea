"""Products of matrices, and linear layers, fast on CPUs.

PyTorch computes float32 matrix products on a CPU with MKL, which is slower on AMD processors than oneDNN: up to a
factor of two. A 1x1 convolution of rows in channels-last memory is the same product, computed by oneDNN, forward and
backward (``python -m benchmarks.parts --only linear``). With few rows its overhead outweighs that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmt_d2.modeling.tracing import is_traced

MIN_ROWS = 2048  # from which oneDNN is faster, with one thread and with two


def inner(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T, as ``torch.inner``: a (..., C), b (K, C) -> (..., K), every row of a times every row of b."""
    many_rows = _onednn_takes(a) or _onednn_takes(b)
    if is_traced() or not many_rows or not (a.numel() and b.numel()):
        return F.linear(a, b)
    return _convolve(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """``F.linear``, with an optional ReLU: x (..., C_in), weight (C_out, C_in), bias (C_out,) -> (..., C_out)."""
    if is_traced() or not _onednn_takes(x):
        product = F.linear(x, weight, bias)
        return F.relu(product) if relu else product
    return _convolve(x, weight, bias, relu)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """``linear`` by oneDNN."""
    rows = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C_in, 1, rows), channels last without a copy
    # Dilation does not change a 1x1 convolution. Without it PyTorch computes one with a single thread by way of MKL.
    product = F.conv2d(rows, weight[:, :, None, None], bias, dilation=2)
    if relu:
        product = F.relu_(product)  # here, where it is not a view yet: autograd copies views that are changed in place
    return product.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _onednn_takes(x: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return on_cpu and x.dtype == torch.float32 and x.numel() >= MIN_ROWS * x.shape[-1] > 0


class Linear(nn.Linear):
    """``nn.Linear`` by way of ``linear``; same parameters and names."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, relu)
