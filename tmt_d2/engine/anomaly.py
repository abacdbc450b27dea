"""Which module first makes a number that is not finite, on the way forward or on the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def find_anomalies(model: nn.Module) -> None:
    """From now on a NaN or an infinity stops ``model`` at the module where it first appears.

    Every output is looked at, so training becomes slower. Infinities in an output that needs no gradient pass, as
    attention masks are made of them.

    Raises (while the model runs):
        FloatingPointError: one line that names the module.
    """
    finite_behind = ["the loss"]

    def check(name: str, kind: str) -> Any:
        def forward_hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not tensor.requires_grad or not tensor.is_floating_point():
                    continue
                if not torch.isfinite(tensor).all():
                    raise FloatingPointError(f"the output of {name} ({kind}) is not finite; its input was")
                tensor.register_hook(gradient_hook)

        def gradient_hook(gradient: Tensor) -> None:
            if not torch.isfinite(gradient).all():
                raise FloatingPointError(
                    f"the gradient of the output of {name} ({kind}) is not finite; that of {finite_behind[0]} still was"
                )
            finite_behind[0] = name

        return forward_hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(check(name, type(module).__name__))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
