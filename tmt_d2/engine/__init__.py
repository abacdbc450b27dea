"""Stages, trainer, optimiser, checkpoints, and the runner of a whole pair."""

from .checkpoint import TMTCheckpointer
from .stages import run_stage

__all__ = ["TMTCheckpointer", "run_stage"]
