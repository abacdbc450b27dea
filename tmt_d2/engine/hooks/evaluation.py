"""Evaluation during training, the best weights, and early stopping."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm

from tmt_d2.engine.best import BEST, Best
from tmt_d2.engine.writers import has_evaluation

logger = logging.getLogger(__name__)


class Evaluation(EvalHook):
    """Evaluates every ``period`` iterations and at the end, and keeps the best weights.

    Attributes:
        results: of the last evaluation. stopped: training was stopped early.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict[str, Any]], best: Best | None) -> None:
        """
        Args:
            evaluate: returns nested results. best: None to keep no best weights and never stop early.
        """
        super().__init__(period, self._evaluate_and_keep)
        self.evaluate, self.best = evaluate, best
        self.results: dict[str, Any] = {}
        self.stopped = False

    def before_train(self) -> None:
        """Evaluate if the run was interrupted between a checkpoint and the evaluation after the same step."""
        start, period = self.trainer.start_iter, self._period
        due = period > 0 and 0 < start < self.trainer.max_iter and start % period == 0
        if due and not self._has_evaluated(start):
            storage = self.trainer.storage
            storage.iter = start - 1  # the step to which the scalars belong
            self._do_eval()
            storage.iter = start
            self.trainer.task.train()

    def _has_evaluated(self, start: int) -> bool:
        is_recorded = not self.best or start in self.best.values
        return is_recorded and has_evaluation(self.trainer.cfg.OUTPUT_DIR, start - 1)

    def stops_early(self) -> bool:
        """Return True if TEST.BEST.PATIENCE has run out before the last step."""
        trainer = self.trainer
        if self.best and self.best.exhausted and trainer.done + 1 < trainer.max_iter and not self.stopped:
            logger.info(
                "stopping after %d of %d iterations: no better evaluation among the last %d (TEST.BEST.PATIENCE)",
                trainer.done + 1,
                trainer.max_iter,
                self.best.patience,
            )
            self.stopped = True
        return self.stopped

    def _evaluate_and_keep(self) -> dict[str, Any]:
        trainer = self.trainer
        trainer.share_buffers()
        self.results = self.evaluate()
        if self.best:
            save = partial(trainer.checkpointer.save_weights, BEST, iterations=trainer.done + 1)
            self.best.note(trainer.done + 1, self.results, save)
            comm.synchronize()
        return _nested_scalars(self.results)


def _nested_scalars(value: Any) -> Any:
    """Turn lists into dictionaries by position, which Detectron2's event storage can log."""
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    return {key: _nested_scalars(item) for key, item in value.items()} if isinstance(value, dict) else value
