"""Low-rank adapters (LoRA, arXiv 2106.09685): y = W x + (alpha / r) B A x, where W stays and A and B learn."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Linear):
    """A linear layer with an adapter. Its own weight and bias keep their names and do not learn; at first B is 0."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale


def add_lora(module: nn.Module, rank: int, alpha: float | None = None, name: str = "qkv") -> int:
    """Put an adapter on every linear layer called ``name`` below ``module``; returns how many. alpha: 2 x rank."""
    count = 0
    for parent in list(module.modules()):
        child = getattr(parent, name, None)
        if isinstance(child, nn.Linear) and not isinstance(child, LoRALinear):
            setattr(parent, name, LoRALinear(child, rank, 2.0 * rank if alpha is None else alpha))
            count += 1
    return count
