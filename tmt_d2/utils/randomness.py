"""Random numbers as functions of what they are for: (seed, step) and (seed, position), never of what ran before.

So a resumed run draws what the uninterrupted one draws, and a sample looks the same whichever process made it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*entropy: int) -> int:
    """A seed in [0, 2**63) for these non-negative integers; those of neighbours have nothing in common."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def seed_everything(*entropy: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices) from ``entropy``."""
    seed = derived_seed(*entropy)
    _seed_python_and_numpy(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Within the block Python, NumPy and PyTorch (on the CPU) draw from ``entropy``; then they go on as before."""
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
