"""Periodic checkpoints."""

from __future__ import annotations

from detectron2.engine import HookBase

from tmt_d2.utils.signals import Stopped


class PeriodicSaving(HookBase):
    """Saves every SOLVER.CHECKPOINT_PERIOD steps and after the last one; stops the run on a signal."""

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        after = self.trainer.done + 1
        if after == self.trainer.max_iter or (self.period > 0 and after % self.period == 0):
            self.trainer.save_checkpoint()
        if self.trainer.stop_agreed:
            raise Stopped
