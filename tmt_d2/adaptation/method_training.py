"""What a method's own training module is to the stage that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn


class MethodTraining(nn.Module):
    """A module around the model, batch -> dict of weighted losses; what it may leave as it is stands here.

    Attributes:
        progress: what a checkpoint has to hold beside the model, so that a run can go on.
    """

    progress: nn.Module

    def load_references(self, load: Callable[[str, nn.Module], object]) -> None:
        """Before anything else in every sitting: what comes from other files than the model. load: their weights into
        a model of the same architecture, path or address first."""

    def begin(self) -> None:
        """Before the first step of the run, once the model has its weights."""

    def also_evaluated(self) -> Mapping[str, nn.Module]:
        """Models beside the one that is saved, by name; their means stand in the results as "mIoU-<name>"."""
        return {}
