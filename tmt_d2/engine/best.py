"""The best weights of a run by one metric, and early stopping."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from tmt_d2.errors import UserError
from tmt_d2.utils.files import read_json, write_json

logger = logging.getLogger(__name__)

BEST = "model_best"
RECORD = "best.json"


class Best:
    """Values of one metric by the number of completed iterations, in ``OUTPUT_DIR/best.json``.

    A resumed run drops the evaluations after its checkpoint, so it equals an uninterrupted one. Were the best weights
    of one that is dropped, the next evaluation replaces them: those of an earlier one exist no more. Detectron2's
    ``BestCheckpointer`` keeps the best value in memory only: a resumed run would replace better weights.
    """

    def __init__(self, folder: Path, metric: str, split: str, patience: int) -> None:
        """
        Args:
            metric: higher is better, such as mIoU. split: name of a data set. patience: as TEST.BEST.PATIENCE.
        """
        self.path = folder / RECORD
        self.metric, self.split, self.patience = metric, split, patience
        self.values: dict[int, float] = {}
        self._first = 0  # the best weights may be of this iteration or a later one

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Best | None:
        """Return None if TEST.BEST.METRIC is empty."""
        best = cfg.TEST.BEST
        if not best.METRIC:
            return None
        return cls(Path(cfg.OUTPUT_DIR), best.METRIC, best.SPLIT or cfg.DATASETS.TEST[0], best.PATIENCE)

    def read(self, last: int) -> None:
        """Read the record up to ``last`` iterations.

        Raises:
            UserError: the record is of another metric or split.
        """
        if not self.path.is_file():
            return
        keys = ("metric", "split", "best", "evaluations")
        record = read_json(self.path, keys, "delete it to start a new record")
        if (record["metric"], record["split"]) != (self.metric, self.split):
            raise UserError(
                f"it records {record['metric']} of {record['split']}, not TEST.BEST, {self.metric} of {self.split}",
                key=self.path,
                hint="delete it to start a new record",
            )
        values = {each["after"]: each["value"] for each in record["evaluations"] if each["after"] <= last}
        self.values = {after: math.nan if value is None else value for after, value in values.items()}
        lost = record["best"] is None or record["best"] > last
        self._first = last + (last in self.values) if lost else record["best"]

    def forget(self) -> None:
        """Delete the record: a run from scratch has no best weights."""
        self.path.unlink(missing_ok=True)

    def note(self, iteration: int, results: Mapping[str, Any], save: Callable[[], object]) -> None:
        """Record one evaluation and log the best one; every process must call this.

        Args:
            iteration: number of completed iterations.
            results: {split: {metric: value}}; those of the first process are used.
            save: called in all processes if this evaluation is the best.
        """
        value = comm.all_gather(results.get(self.split, {}).get(self.metric, math.nan))[0]
        self.values[iteration] = value
        best = self.iteration
        if best == iteration:
            save()  # before the record, which refers to the weights
        if comm.is_main_process():
            listed = [{"after": each, "value": value} for each, value in sorted(self.values.items())]
            write_json(self.path, {"metric": self.metric, "split": self.split, "best": best, "evaluations": listed})
        text = "none" if best is None else f"{self.values[best]:.2f} after {best}"
        logger.info(
            "%s of %s: %.2f after %d iterations; best so far: %s", self.metric, self.split, value, iteration, text
        )

    @property
    def iteration(self) -> int | None:
        """Return the completed iterations of the evaluation whose weights are kept; None without any."""
        return self._best_since(self._first)

    @property
    def exhausted(self) -> bool:
        """Return True if the last ``patience`` evaluations are not better than the best before them."""
        best = self._best_since(0)
        since = len(self.values) if best is None else sum(iteration > best for iteration in self.values)
        return 0 < self.patience <= since

    def _best_since(self, first: int) -> int | None:
        """Return the first evaluation with the highest value among those from ``first`` on; None without a value."""
        values = {after: value for after, value in sorted(self.values.items()) if after >= first}
        finite = {after: value for after, value in values.items() if math.isfinite(value)}
        return max(finite, key=lambda after: finite[after]) if finite else None
