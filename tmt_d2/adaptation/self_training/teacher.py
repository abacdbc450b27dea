"""Mean Teacher (arXiv 1703.01780): the teacher is the moving average of the student, including its buffers."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """Rule by which the teacher follows the student; its state is the number of steps so far."""

    def __init__(self, momentum: float, burn_in: int):
        """
        Args:
            momentum: m. burn_in: number of first steps in which the teacher stays as it is.
        """
        super().__init__()
        self.momentum, self.burn_in, self.steps = momentum, burn_in, 0

    def kept(self) -> float:
        """Return the teacher's share of itself, min(1 - 1 / (i + 1), m) in step i after the burn-in; in it, 1."""
        after = self.steps - self.burn_in
        return 1.0 if after < 0 else min(1 - 1 / (after + 1), self.momentum)

    @torch.no_grad()
    def update(self, teacher: nn.Module, student: nn.Module) -> None:
        """Update the teacher after a step of the student, which has the same structure; integer buffers are copied."""
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


@torch.no_grad()
def share_statistics(teacher: nn.Module) -> None:
    """Give all processes the normalization statistics of the first one, so that there is one teacher."""
    if comm.get_world_size() > 1:
        buffers = [buffer for buffer in teacher.buffers() if buffer.is_floating_point()]
        together = torch.cat([buffer.flatten() for buffer in buffers])
        torch.distributed.broadcast(together, 0)
        parts = together.split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [part.view(buffer.shape) for part, buffer in zip(parts, buffers, strict=True)])
