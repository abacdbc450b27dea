"""Low-rank adapters (LoRA, arXiv 2106.09685): y = W x + (alpha / r) B A x, where W is frozen and A and B learn."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTIONS = ("qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj")  # to queries, keys and values, in timm


class LoRALinear(nn.Linear):
    """Linear layer with an adapter. Its own weight and bias keep their names and are frozen; B starts at 0.

    The attribute ``weight`` is W + (alpha / r) B A, for modules that do not call the layer: EVA, BEiT and SwinV2.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name == "weight" and "lora_b" in self._parameters:
            return value + self.lora_b @ self.lora_a * self.scale
        return value

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self._parameters["weight"]  # not self.weight: in 16 bits a small B A would be lost in the sum
        return F.linear(x, weight, self.bias) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale


def add_lora(module: nn.Module, rank: int, alpha: float | None = None) -> int:
    """Put an adapter on every linear layer below ``module`` whose name is in ``PROJECTIONS``; return their number.

    alpha: None = 2 x rank.
    """
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if name in PROJECTIONS and isinstance(child, nn.Linear) and not isinstance(child, LoRALinear):
                setattr(parent, name, LoRALinear(child, rank, 2.0 * rank if alpha is None else alpha))
                count += 1
    return count


def adapters_without_gradient(module: nn.Module) -> list[str]:
    """Return the names of adapters that got no gradient."""
    adapters = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LoRALinear))
    return [name for name, layer in adapters if layer.lora_a.grad is None or layer.lora_b.grad is None]
