"""Evaluation mode of modules whose parts may be in different modes, such as a teacher and its student."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the context, and restore the mode of every part, also after an error.

    ``module.train(was_training)`` would set the mode of the outermost module in all parts.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
