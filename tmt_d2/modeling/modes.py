"""Training and evaluation mode of modules whose parts may differ in it, as a teacher and its student do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards every part has the mode it had before, also after an error.

    ``module.train(was_training)`` would give the mode of the outermost module to all parts, and a wrapper made for the
    evaluation starts in training mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
