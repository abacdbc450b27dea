"""What a plan makes of its cells: units, each one stage in one folder; what is equal is one unit that others share."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from tmt_d2.config import setup_cfg
from tmt_d2.experiments.pair import estimator_cfg, is_done, needs_estimator, split_name
from tmt_d2.experiments.plan import Plan, Sweep

SCORES_FILE = "scores.json"  # what a unit of kind "scores" leaves


@dataclass(frozen=True)
class Unit:
    """One stage of one cell.

    name: its folder below the output. kind: of ``KINDS``. needs: names of units whose checkpoints it reads. about:
    what it is for, with "kind", "source", "target", "seed", ...: the report reads it from ``stage.json``.
    """

    name: str
    kind: str
    cfg: CfgNode
    needs: tuple[str, ...]
    about: Mapping[str, Any]
    scores: Mapping[str, int] | None = None

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    def is_done(self) -> bool:
        return is_done(self.name, self.cfg, self.record())

    def record(self) -> dict[str, Any]:
        return {"unit": dict(self.about)} | ({"scores": dict(self.scores)} if self.scores else {})


def units_of(plan: Plan, output: Path, opts: Sequence[str] = ()) -> list[Unit]:
    """All units in the order in which they are run: a pair is complete before the next one begins, seed by seed.

    Args:
        opts: KEY VALUE ... overrides behind those of the file.
    """
    units: dict[str, Unit] = {}
    for seed in plan.seeds:
        for source, target in plan.pairs:
            for unit in _PairUnits(plan, output, opts, source, target, seed).units():
                units.setdefault(unit.name, unit)
    return list(units.values())


class _PairUnits:
    """The units of one pair and seed, those that other pairs have too included."""

    def __init__(self, plan: Plan, output: Path, opts: Sequence[str], source: str, target: str, seed: int):
        self.plan, self.output, self.opts = plan, output, opts
        self.source, self.target, self.seed = source, target, seed
        self.pair = f"{source}-{target}"
        self.about = {"source": source, "target": target, "seed": seed}
        self.source_name = f"source/{source}/seed{seed}"
        self.weights = f"{output / self.source_name}/model_final.pth"

    def units(self) -> Iterator[Unit]:
        cfg = self.cfg("source", self.source_name, "source", test=self.source)
        yield self.unit(self.source_name, "source", cfg, (), {"source": self.source, "seed": self.seed})
        name = f"evaluation/{self.pair}/seed{self.seed}"
        cfg = self.cfg("source", name, "evaluation", self.weights)
        yield self.unit(name, "evaluation", cfg, (self.source_name,), self.about)
        if self.plan.scores is not None:
            name = f"scores/{self.pair}/seed{self.seed}"
            cfg = self.cfg("source", name, "scores", self.weights)
            yield self.unit(name, "scores", cfg, (self.source_name,), self.about, self.plan.scores)
        for fraction in self.plan.label_fractions:
            for method in self.plan.methods:
                yield from self.cell(method, fraction)
            for sweep in self.plan.sweeps:
                for method in sweep.methods:
                    own = self.own_value(method, sweep)
                    for value in sweep.values:
                        if value != own or method not in self.plan.methods:  # else it is a cell of the plan anyway
                            yield from self.cell(method, fraction, sweep, value)

    def own_value(self, method: str, sweep: Sweep) -> Any:
        node: Any = self.cfg(method, "", "finetune")
        for part in sweep.key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise ValueError(f"sweeps.{sweep.name}: the config has no key {sweep.key}")
            node = node[part]
        return node

    def cell(self, method: str, fraction: float, sweep: Sweep | None = None, value: Any = None) -> Iterator[Unit]:
        swept = [] if sweep is None else [sweep.key, str(value)]
        part = method if sweep is None else f"{method}/{sweep.name}-{_plain(value)}"
        name = f"finetune/{self.pair}/{part}/labels{_plain(fraction)}/seed{self.seed}"
        extra = ["TRANSFER.LABEL_FRACTION", fraction, *swept]
        cfg = self.cfg(method, name, "finetune", self.weights, extra)
        needs = self.source_name
        if needs_estimator(cfg):
            shared = self.cfg("estimator", f"estimator/{self.pair}/seed{self.seed}", "estimator", self.weights)
            estimator = estimator_cfg(shared, cfg)
            needs = str(Path(estimator.OUTPUT_DIR).relative_to(self.output))
            variant = Path(needs).name.removeprefix(f"seed{self.seed}").lstrip("-")
            yield self.unit(needs, "estimator", estimator, (self.source_name,), {**self.about, "variant": variant})
            cfg = self.cfg(method, name, "finetune", f"{estimator.OUTPUT_DIR}/model_final.pth", extra)
        about: dict[str, Any] = {**self.about, "method": method, "label_fraction": fraction}
        if sweep is not None:
            about |= {"sweep": sweep.name, "key": sweep.key, "value": value}
        yield self.unit(name, "finetune", cfg, (needs,), about)

    def unit(
        self,
        name: str,
        kind: str,
        cfg: CfgNode,
        needs: tuple[str, ...],
        about: Mapping[str, Any],
        scores: Mapping[str, int] | None = None,
    ) -> Unit:
        return Unit(name, kind, cfg, needs, {"kind": kind, **about}, scores)

    def cfg(
        self, file: str, name: str, kind: str, weights: str = "", extra: Sequence[Any] = (), test: str = ""
    ) -> CfgNode:
        train = self.source if kind == "source" else self.target
        values: list[Any] = ["DATASETS.TRAIN", (split_name(train, "train"),)]
        values += ["DATASETS.TEST", (split_name(test or self.target, "val"),)]
        if kind != "source":
            values += ["DATASETS.SOURCE_TRAIN", (split_name(self.source, "train"),)]
            values += ["DATASETS.SOURCE_TEST", (split_name(self.source, "val"),)]
        if weights:
            values += ["MODEL.WEIGHTS", weights]
        for options in (self.plan.options, self.plan.kind_options.get(kind, {})):
            values += [item for key, value in options.items() for item in (key, value)]
        values += [*extra, "SEED", self.seed, *self.opts, "OUTPUT_DIR", str(self.output / name)]
        return setup_cfg(str(self.plan.configs / f"{file}.yaml"), values)


def _plain(value: Any) -> str:
    """A value as a part of a file name."""
    if isinstance(value, float):
        return f"{value:g}"
    return "_".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def select(units: Sequence[Unit], pattern: str | None) -> list[Unit]:
    """Units whose name holds ``pattern`` (with * and ?), and all that they need.

    Raises:
        ValueError: there are none.
    """
    if pattern is None:
        return list(units)
    by_name = {unit.name: unit for unit in units}
    wanted = [unit.name for unit in units if fnmatch.fnmatch(unit.name, f"*{pattern}*")]
    if not wanted:
        raise ValueError(f"--only {pattern}: no unit is called so; --dry-run lists their names")
    chosen = set()
    while wanted:
        name = wanted.pop()
        chosen.add(name)
        wanted += [need for need in by_name[name].needs if need not in chosen]
    return [unit for unit in units if unit.name in chosen]
