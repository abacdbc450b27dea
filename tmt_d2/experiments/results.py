"""Everything that the units of a matrix left in its output folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmt_d2.adaptation.methods import METHODS
from tmt_d2.config.file import load_config_file
from tmt_d2.errors import UserError
from tmt_d2.experiments.records import STAGE_RECORD, Labels, labels_of, read_record, read_values
from tmt_d2.utils.files import read_json_lines

IOU = "IoU-"  # before the name of a class
Pair = tuple[str, str]


@dataclass(frozen=True)
class Run:
    """One unit that is done; ``about`` and ``values`` are what it recorded. Fine-tuning and evaluation: metrics."""

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
        return labels_of(self.about)

    @property
    def cell(self) -> tuple[Pair, int]:
        """What two methods are compared within: pair and seed."""
        return self.pair, self.about["seed"]


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
        """The most first; of as many, what was drawn at random before what a list named."""
        found = {run.labels for run in self.fine_tuned or self.swept}
        return sorted(found, key=lambda labels: (-labels.fraction, -labels.count, labels.listed))

    def methods(self) -> list[str]:
        names = {run.method for run in self.fine_tuned}
        return [name for name in METHODS if name in names] + sorted(names - METHODS.keys())

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
        about = record.get("unit")
        if about is None:  # a stage that belongs to a single pair
            continue
        twin = seen.setdefault(json.dumps(about, sort_keys=True), file.parent)
        if twin != file.parent:
            raise UserError(f"{twin} and {file.parent} are both of one cell: give the folder of one matrix")
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
    """Names of the classes that were measured, in the order of their train ids."""
    names = (name.removeprefix(IOU) for run in runs for name in run.values if name.startswith(IOU))
    return list(dict.fromkeys(names))


def by_cell(runs: Iterable[Run], metric: str) -> dict[tuple[Pair, int], float]:
    """{(pair, seed): metric}, without what is not a number."""
    return {run.cell: run.values[metric] for run in runs if run.values.get(metric) is not None}


def by_pair(runs: Iterable[Run], metric: str) -> dict[Pair, list[float]]:
    """The values over seeds."""
    values: dict[Pair, list[float]] = {}
    for (pair, _), value in by_cell(runs, metric).items():
        values.setdefault(pair, []).append(value)
    return values


def setting(run: Run, key: str) -> Any:
    """The value of a config key that the run was made with."""
    node: Any = load_config_file(run.folder / "config.yaml")
    for part in key.split("."):
        node = node[part]
    return node


def log_of(run: Run) -> list[dict[str, Any]]:
    """The lines of the run's training log that have a loss."""
    path = run.folder / "metrics.json"
    lines = read_json_lines(path) if path.is_file() else ()
    return [line for line in lines if line.get("total_loss") is not None]
