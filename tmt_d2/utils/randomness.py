"""Random numbers as functions of (seed, step) or (seed, position), independent of earlier draws.

So a resumed run equals an uninterrupted one, and a sample does not depend on the process that makes it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*entropy: int) -> int:
    """Return a seed in [0, 2**63) for these non-negative integers; seeds of neighbors are unrelated."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def seed_everything(*entropy: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices) from ``entropy``."""
    seed = derived_seed(*entropy)
    _seed_python_and_numpy(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed Python, NumPy and PyTorch (on the CPU) from ``entropy``; restore their states after the block."""
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = derived_seed(*entropy)
    _seed_python_and_numpy(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)


def _seed_python_and_numpy(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])
