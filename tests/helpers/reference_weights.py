"""Weights that follow from their state-dict name, so that recorded outputs need no recorded checkpoint.

The name seeds a splitmix64 stream (integer arithmetic only: the same on every machine and with every library version),
which is scaled by the kind of the entry so that activations stay of order one.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def named_noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1), a function of ``name`` and the position alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    steps = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
    bits = steps * np.uint64(_GOLDEN) + np.uint64(seed)  # arrays wrap around without a warning
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return ((bits >> np.uint64(11)) * 2.0**-52 - 1).reshape(shape)


def named_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32 value of the floating-point state-dict entry ``name``."""
    noise = named_noise(name, shape)
    if name.endswith("running_var"):
        value = 1 + 0.5 * np.abs(noise)
    elif name.endswith("running_mean"):
        value = 0.1 * noise
    elif len(shape) > 1:  # unit gain
        value = noise * math.sqrt(3.0 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 1 + 0.1 * noise
    elif name.endswith("sampling_offsets.bias"):
        value = 2.0 * noise
    else:
        value = 0.05 * noise
    return torch.from_numpy(value.astype(np.float32))


def fill_by_name(model: nn.Module) -> None:
    """Overwrite every floating-point entry of the model's state dict; integer entries keep their values.

    In place: loading would keep the criterion's class weights, which are settings, and the recording has others.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(named_value(name, tuple(value.shape)))
