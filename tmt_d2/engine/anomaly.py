"""Detection of the module whose output or gradient is the first that is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def find_anomalies(model: nn.Module) -> None:
    """Register hooks that stop ``model`` at the module where a NaN or an infinity first appears.

    Training becomes slower. Outputs without gradient are not checked: attention masks contain infinities.

    Raises (while the model runs):
        FloatingPointError: names the module.
    """
    finite_behind = ["the loss"]

    def check(name: str, kind: str) -> Any:
        def forward_hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not tensor.requires_grad or not tensor.is_floating_point():
                    continue
                if not torch.isfinite(tensor).all():
                    raise FloatingPointError(f"the output of {name} ({kind}) is not finite, its input is")
                tensor.register_hook(gradient_hook)

        def gradient_hook(gradient: Tensor) -> None:
            if not torch.isfinite(gradient).all():
                raise FloatingPointError(
                    f"the gradient of the output of {name} ({kind}) is not finite, that of {finite_behind[0]} is"
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
