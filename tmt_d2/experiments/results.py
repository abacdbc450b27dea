"""Results of units: the record and the values in a unit's folder, and all of them in the output folder of a matrix."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from tmt_d2.adaptation import TASKS, Task
from tmt_d2.adaptation.estimator import Estimator
from tmt_d2.config import get_key
from tmt_d2.config.file import load_config_file
from tmt_d2.errors import UserError
from tmt_d2.utils.files import read_json, read_json_lines

STAGE_RECORD = "stage.json"
SCORES_FILE = "scores.json"
DAMAGED = "delete the folder to run it again"
IOU = "IoU-"  # before the name of a class
Pair = tuple[str, str]


@dataclass(frozen=True, order=True)
class Labels:
    """Amount of labeled target images of a fine-tuning: a fraction of them, or else a number.

    Every number is less than every fraction. listed: name of the list that names the images; empty: drawn at random.
    """

    fraction: float
    count: int = 0
    listed: str = ""

    def __str__(self) -> str:
        if self.fraction:
            return "all labels" if self.fraction == 1 else f"{self.fraction:.3g} of the labels"
        listed = f" ({self.listed})" if self.listed else ""
        return f"{self.count} label{'s' if self.count != 1 else ''}{listed}"


ALL = Labels(1.0)


class _Source(TypedDict):
    kind: str
    source: str
    seed: int


class About(_Source, total=False):
    """Description of a unit.

    kind: of ``KINDS``. target: of all but source models. variant: of an estimator that differs from the shared one,
    empty for that. method, label_fraction or label_count: of fine-tuning; label_list, images: name and digest of the
    list that names the labeled images, where one does; sweep, key, value: of a unit of a sweep. weights: digest of the
    checkpoint that is the source model, where the unit only evaluates it.
    """

    target: str
    variant: str
    method: str
    label_fraction: float
    label_count: int
    label_list: str
    images: str
    sweep: str
    key: str
    value: Any
    weights: str


class StageRecord(TypedDict, total=False):
    """Content of ``stage.json``, which is written when a unit has ended.

    unit: its description. scores: arguments of ``score_checkpoint``. settings: fingerprint of the config. made_from:
    digest of each unit that it needs. seconds: time of the run that ended it.
    """

    unit: About
    scores: Mapping[str, int]
    settings: str
    made_from: Mapping[str, str]
    seconds: float


def read_record(folder: Path) -> StageRecord:
    return read_json(folder / STAGE_RECORD, ("settings", "made_from", "seconds"), DAMAGED)


def read_values(folder: Path, kind: str) -> Mapping[str, Any]:
    """Return scores of kind "scores", measurements of kind "estimator", {split: metrics} of every other kind."""
    file = {"scores": SCORES_FILE, "estimator": Estimator.results}.get(kind, Task.results)
    return read_json(folder / file, remedy=DAMAGED)


@dataclass(frozen=True)
class Run:
    """A unit that is done, as it was recorded; values: as ``read_values``, of the one split."""

    about: Mapping[str, Any]
    folder: Path
    seconds: float
    values: Mapping[str, Any]

    @property
    def pair(self) -> Pair:
        return self.about["source"], self.about["target"]

    @property
    def method(self) -> str:
        return self.about.get("method", "")

    @property
    def labels(self) -> Labels:
        """Return the amount of labels of a fine-tuning."""
        if "label_count" in self.about:
            return Labels(0.0, self.about["label_count"], self.about.get("label_list", ""))
        return Labels(self.about["label_fraction"])

    @property
    def cell(self) -> tuple[Pair, int]:
        """Return pair and seed, within which methods are compared."""
        return self.pair, self.about["seed"]

    def setting(self, key: str) -> Any:
        """Return the value of a config key."""
        return get_key(load_config_file(self.folder / "config.yaml"), key)

    def log(self) -> list[dict[str, Any]]:
        """Return the lines of the training log that have a loss."""
        path = self.folder / "metrics.json"
        lines = read_json_lines(path) if path.is_file() else ()
        return [line for line in lines if line.get("total_loss") is not None]


@dataclass
class Results:
    """Runs by kind, in a fixed order. fine_tuned: without sweeps; swept: the other cells of sweeps."""

    source: list[Run] = field(default_factory=list)
    evaluation: list[Run] = field(default_factory=list)
    estimator: list[Run] = field(default_factory=list)
    scores: list[Run] = field(default_factory=list)
    fine_tuned: list[Run] = field(default_factory=list)
    swept: list[Run] = field(default_factory=list)

    def labels(self) -> list[Labels]:
        """Return the amounts, the largest first; of equal amounts, the random draw before the lists."""
        amounts = {run.labels for run in self.fine_tuned or self.swept}
        return sorted(amounts, key=lambda labels: (-labels.fraction, -labels.count, labels.listed))

    def methods(self) -> list[str]:
        names = {run.method for run in self.fine_tuned}
        return [name for name in TASKS if name in names] + sorted(names - TASKS.keys())

    def pairs(self) -> list[Pair]:
        return sorted({run.pair for run in self.fine_tuned + self.evaluation})

    def seeds(self) -> list[int]:
        return sorted({run.about["seed"] for run in self.fine_tuned or self.swept or self.evaluation})

    def of(self, method: str, labels: Labels) -> list[Run]:
        return [run for run in self.fine_tuned if run.method == method and run.labels == labels]


def read_results(output: Path) -> Results:
    """
    Raises:
        FileNotFoundError: ``output`` holds no finished unit of a matrix.
        UserError: it holds several matrices.
    """
    results = Results()
    seen: dict[str, Path] = {}
    for file in sorted(output.rglob(STAGE_RECORD)):
        record = read_record(file.parent)
        about = record["unit"]
        twin = seen.setdefault(json.dumps(about, sort_keys=True), file.parent)
        if twin != file.parent:
            message = f"{twin.relative_to(output)} and {file.parent.relative_to(output)} are the same cell"
            raise UserError(message, key=output, hint="give the folder of one matrix")
        kind = about["kind"]
        values = read_values(file.parent, kind)
        if kind in ("source", "evaluation", "finetune"):
            (values,) = values.values()  # of the one split
        run = Run(about, file.parent, record["seconds"], values)
        if kind == "finetune":
            (results.swept if "sweep" in about else results.fine_tuned).append(run)
        else:
            getattr(results, kind).append(run)
    if not (results.fine_tuned or results.evaluation):
        raise FileNotFoundError(f"{output} has no evaluation or fine-tuning of train_matrix.py that has ended")
    return results


def classes_of(runs: Iterable[Run]) -> list[str]:
    """Return the names of the classes that were measured, in the order of their class indices."""
    names = (name.removeprefix(IOU) for run in runs for name in run.values if name.startswith(IOU))
    return list(dict.fromkeys(names))


def by_cell(runs: Iterable[Run], metric: str) -> dict[tuple[Pair, int], float]:
    """Return {(pair, seed): metric}, without missing values."""
    return {run.cell: run.values[metric] for run in runs if run.values.get(metric) is not None}


def by_pair(runs: Iterable[Run], metric: str) -> dict[Pair, list[float]]:
    """Return {pair: values over seeds}."""
    values: dict[Pair, list[float]] = {}
    for (pair, _), value in by_cell(runs, metric).items():
        values.setdefault(pair, []).append(value)
    return values
