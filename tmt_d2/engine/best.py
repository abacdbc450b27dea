"""The best weights of a run by one metric, and the end of a run that gets no better."""

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
    """Every evaluation's value of one metric by the iterations completed before it, in ``OUTPUT_DIR/best.json``.

    What is best, and how long ago, follows from that list alone, whenever the run was stopped or killed: a resumed run
    drops what lies behind its checkpoint and repeats the evaluation that the checkpoint was saved just before.
    """

    def __init__(self, folder: Path, metric: str, split: str, patience: int) -> None:
        """
        Args:
            metric: such as mIoU; higher is better. split: of which. patience: as TEST.BEST.PATIENCE.
        """
        self.path = folder / RECORD
        self.metric, self.split, self.patience = metric, split, patience
        self.values: dict[int, float] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Best | None:
        """None where TEST.BEST.METRIC is empty, and in the estimator stage, which measures no split."""
        best = cfg.TEST.BEST
        if not best.METRIC or cfg.TRANSFER.STAGE == "estimator":
            return None
        return cls(Path(cfg.OUTPUT_DIR), best.METRIC, best.SPLIT or cfg.DATASETS.TEST[0], best.PATIENCE)

    def read(self, last: int) -> None:
        """Take over what an earlier process recorded after at most ``last`` iterations.

        Raises:
            UserError: the record is of another metric or split.
        """
        if not self.path.is_file():
            return
        keys = ("metric", "split", "evaluations")
        record = read_json(self.path, keys, "delete it to begin a new record")
        if (record["metric"], record["split"]) != (self.metric, self.split):
            raise UserError(
                f"{self.path} is of {record['metric']} of {record['split']}, TEST.BEST asks for {self.metric} of "
                f"{self.split}: delete that file to begin a new record"
            )
        self.values = {_after(each): _number(each["value"]) for each in record["evaluations"]}
        self.values = {iteration: value for iteration, value in self.values.items() if iteration <= last}

    def forget(self) -> None:
        """A run that begins anew has no best."""
        self.path.unlink(missing_ok=True)

    def note(self, iteration: int, results: Mapping[str, Any], save: Callable[[], object]) -> None:
        """Record one evaluation, and log what is best so far; every process must call it.

        Args:
            iteration: how many were completed.
            results: {split: {metric: value}}; what the first process has counts.
            save: called first, in all processes, if this one is the best.
        """
        value = comm.all_gather(results.get(self.split, {}).get(self.metric, math.nan))[0]
        self.values[iteration] = value
        best = self.iteration
        if best == iteration:
            save()  # before the record: who reads the record finds the weights
        if comm.is_main_process():
            listed = [{"after": each, "value": value} for each, value in sorted(self.values.items())]
            write_json(self.path, {"metric": self.metric, "split": self.split, "best": best, "evaluations": listed})
        said = "none" if best is None else f"{self.values[best]:.2f} after {best}"
        logger.info(
            "%s of %s: %.2f after %d iterations; best so far: %s", self.metric, self.split, value, iteration, said
        )

    @property
    def iteration(self) -> int | None:
        """The first one with the highest value; None before there is a value."""
        finite = {iteration: value for iteration, value in sorted(self.values.items()) if math.isfinite(value)}
        return max(finite, key=lambda iteration: finite[iteration]) if finite else None

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` evaluations in a row have brought nothing better."""
        best = self.iteration
        since = len(self.values) if best is None else sum(iteration > best for iteration in self.values)
        return 0 < self.patience <= since


def _after(evaluation: Mapping[str, Any]) -> int:
    """Completed iterations; records of earlier versions counted from 0."""
    return evaluation["after"] if "after" in evaluation else evaluation["iteration"] + 1


def _number(value: float | None) -> float:
    return math.nan if value is None else value
