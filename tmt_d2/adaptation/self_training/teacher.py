"""The teacher is the moving average of the student (Mean Teacher, arXiv 1703.01780), of its buffers too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """How a teacher follows a student; its state is the number of steps so far."""

    def __init__(self, momentum: float, burn_in: int):
        """
        Args:
            momentum: m. burn_in: in so many first steps the teacher stays as it is.
        """
        super().__init__()
        self.momentum, self.burn_in, self.steps = momentum, burn_in, 0

    def kept(self) -> float:
        """Of itself the teacher keeps min(1 - 1 / (i + 1), m) in step i after the burn-in: nothing in the first."""
        after = self.steps - self.burn_in
        return 1.0 if after < 0 else min(1 - 1 / (after + 1), self.momentum)

    @torch.no_grad()
    def update(self, teacher: nn.Module, student: nn.Module) -> None:
        """After a step of the student. Both have the same structure; buffers of whole numbers are copied."""
        kept = self.kept()
        self.steps += 1
        if kept == 1:
            return
        averaged: list[tuple[Tensor, Tensor]] = list(zip(teacher.parameters(), student.parameters(), strict=True))
        for mine, other in zip(teacher.buffers(), student.buffers(), strict=True):
            if mine.is_floating_point():
                averaged.append((mine, other))
            else:
                mine.copy_(other)
        ours, theirs = ([pair[side] for pair in averaged] for side in (0, 1))
        torch._foreach_lerp_(ours, theirs, 1 - kept)

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
