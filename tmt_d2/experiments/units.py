"""Units of a plan: trainings and evaluations with a folder each; equal ones of several cells are one unit."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from tmt_d2.adaptation import task_of
from tmt_d2.adaptation.map_cache import ESTIMATOR_KEYS
from tmt_d2.config import get_key, replace_keys, setup_cfg
from tmt_d2.data.datasets.registration import split_name
from tmt_d2.data.image_lists import listed_names
from tmt_d2.engine.checkpoint.checkpointer import keep_weights
from tmt_d2.engine.run_dir import PLAIN, WITHOUT_EFFECT, check_identity
from tmt_d2.errors import UserError, did_you_mean
from tmt_d2.experiments.plan import PLANNED, Plan, Sweep
from tmt_d2.experiments.results import DAMAGED, STAGE_RECORD, About, Labels, StageRecord, read_record, read_values
from tmt_d2.utils.files import read_json, sha256_of, write_json

BEGINNING = "begun.json"
REMOVE = "remove one of them"
LABEL_KEYS = ("TRANSFER.LABEL_COUNT", "TRANSFER.LABEL_LIST", "TRANSFER.LABEL_FRACTION")


@dataclass(frozen=True)
class Unit:
    """One training or evaluation.

    name: its folder below the output. needs: names of units whose checkpoints it reads. scores: as in ``Plan``.
    made_from: digest of each unit that it needs.
    """

    name: str
    cfg: CfgNode
    needs: tuple[str, ...]
    about: About
    scores: Mapping[str, int] | None = None
    made_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.about["kind"]

    @property
    def trains_nothing(self) -> bool:
        """True if the unit only evaluates or scores a checkpoint."""
        return self.kind in ("evaluation", "scores") or "weights" in self.about

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    def is_done(self) -> bool:
        """
        Raises:
            UserError: the folder holds a unit of other settings, or made from a unit of others.
        """
        is_done = (self.folder / STAGE_RECORD).is_file()
        there = read_record(self.folder) if is_done else read_beginning(self.folder)
        if there:
            hint = "choose another --output, or delete the folder to run it again"
            here = {"settings": self.fingerprint(), **self.made_from}
            check_identity({"settings": there["settings"], **there["made_from"]}, here, self.folder, hint)
        return is_done

    def write_beginning(self) -> None:
        """Record what an unfinished run in the folder is made from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / BEGINNING, {"settings": self.fingerprint(), "made_from": self.made_from})

    def write_record(self, seconds: float) -> None:
        """Record that the unit has ended; only the weights of its checkpoint are kept."""
        keep_weights(self.folder)  # before the record: others read the checkpoint from then on
        (self.folder / BEGINNING).unlink(missing_ok=True)
        ended = {"settings": self.fingerprint(), "made_from": self.made_from, "seconds": seconds}
        write_json(self.folder / STAGE_RECORD, {**ended, **self._identity()})

    def record(self) -> StageRecord:
        """Return the record of a unit that is done."""
        return read_record(self.folder)

    def values(self) -> Mapping[str, Any]:
        """Return the values of a unit that is done, see ``read_values``."""
        return read_values(self.folder, self.kind)

    def fingerprint(self) -> str:
        """Return a hash that is equal for units that must give equal results.

        It is of the identity and of all config keys that results depend on; of input files only the names count.
        """
        files = {key: Path(get_key(self.cfg, key)).name for key in ("MODEL.WEIGHTS", "TRANSFER.LABEL_LIST")}
        # T has no part in a plain model; True was the default when folders were first written.
        plain = {"MODEL.TMT.TEST_ATTENTION": True} if self.cfg.MODEL.META_ARCHITECTURE == PLAIN else {}
        cfg = replace_keys(self.cfg, {**WITHOUT_EFFECT, **files, **plain})
        return hashlib.sha256(json.dumps([cfg, self._identity()], sort_keys=True).encode()).hexdigest()

    def digest(self) -> str:
        """Return a short hash of the settings and of ``made_from``."""
        text = self.fingerprint() + json.dumps(self.made_from, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _identity(self) -> dict[str, Any]:
        return {"unit": self.about, "scores": dict(self.scores)} if self.scores else {"unit": self.about}


def read_beginning(folder: Path) -> StageRecord:
    """Return the content of ``begun.json``; empty without it, as another process may just have ended the unit."""
    try:
        return read_json(folder / BEGINNING, ("settings", "made_from"), DAMAGED)
    except FileNotFoundError:
        return {}


def units_of(plan: Plan, output: Path, opts: Sequence[str] = ()) -> list[Unit]:
    """Return all units in the order of running: seed by seed, and each pair is complete before the next one begins.

    Args:
        opts: KEY VALUE ... overrides, which win over those of the file.
    """
    units: dict[str, Unit] = {}
    varied = {sweep.key: f"sweeps.{sweep.name}" for sweep in plan.sweeps}
    varied |= {"SEED": "seeds"} if len(plan.seeds) > 1 else {}
    for key in opts[::2]:
        if key in varied:
            raise UserError(f"overridden, although {varied[key]} has several values", key=key, hint=REMOVE)
    amounts = {
        "label_counts": plan.label_counts,
        "label_lists": plan.label_lists,
        "label_fractions": plan.label_fractions,
    }
    overridden = [key for key in opts[::2] if key in LABEL_KEYS]
    listed = [name for name, values in amounts.items() if values]
    if overridden and (sum(map(len, amounts.values())) > 1 or listed not in ([], ["label_fractions"])):
        raise UserError(f"overridden, although the plan has {listed[0]}", key=overridden[0], hint=REMOVE)
    for key in opts[::2]:
        if key in PLANNED:
            raise UserError("overridden, although it follows from the unit", key=key)
    from_override = "SEED" in opts[::2] or not plan.seeds
    for seed in (setup_cfg(plan.model, opts, "source").SEED,) if from_override else plan.seeds:
        for source, target in plan.pairs:
            for unit in _PairUnits(plan, output, opts, source, target, seed).units():
                if unit.name not in units:  # those it needs come first
                    made_from = {need: units[need].digest() for need in unit.needs}
                    units[unit.name] = replace(unit, made_from=made_from)
    return list(units.values())


class _PairUnits:
    """The units of one pair and seed, including those that other pairs share."""

    def __init__(self, plan: Plan, output: Path, opts: Sequence[str], source: str, target: str, seed: int):
        self.plan, self.output, self.opts = plan, output, opts
        self.source, self.target, self.seed = source, target, seed
        self.cell_name = f"{source}-{target}"
        self.source_name = f"source/{source}/seed{seed}"
        self.weights = str(plan.source_weights or f"{output / self.source_name}/model_final.pth")
        fields = {"source": source, "target": target, "seed": seed}
        self.lists = {name: file.format(**fields) for name, file in plan.label_lists.items()}

    def units(self) -> Iterator[Unit]:
        given = self.plan.source_weights
        cfg = self.cfg("source", self.source_name, "source", str(given or ""), test=self.source)
        about: About = {"kind": "source", "source": self.source, "seed": self.seed}
        yield Unit(
            self.source_name,
            cfg,
            (),
            about if given is None else {**about, "weights": sha256_of(given).hexdigest()[:16]},
        )
        for kind in ("evaluation", "scores"):
            if kind == "evaluation" or self.plan.scores is not None:
                name = f"{kind}/{self.cell_name}/seed{self.seed}"
                cfg = self.cfg("source", name, kind, self.weights)
                scores = self.plan.scores if kind == "scores" else None
                yield Unit(name, cfg, (self.source_name,), self.about(kind), scores)
        labels: list[Sequence[Any]] = [("TRANSFER.LABEL_COUNT", count) for count in self.plan.label_counts]
        labels += [("TRANSFER.LABEL_LIST", file) for file in self.lists.values()]
        labels += [("TRANSFER.LABEL_FRACTION", fraction) for fraction in self.plan.label_fractions]
        for choice in labels or [()]:
            for method in self.plan.methods:
                yield from self.cell(method, choice)
            for sweep in self.plan.sweeps:
                if sweep.key == "TRANSFER.LABEL_SEED" and "TRANSFER.LABEL_LIST" in choice:
                    continue  # nothing is drawn
                for method in sweep.methods:
                    own = self.value_of(method, sweep)
                    for value in self.values(method, sweep):
                        if value != own or method not in self.plan.methods:  # else it is a cell of the plan anyway
                            yield from self.cell(method, choice, sweep, value)

    def value_of(self, method: str, sweep: Sweep, extra: Sequence[Any] = ()) -> Any:
        return get_key(self.cfg(method, "", "finetune", extra=extra), sweep.key)

    def values(self, method: str, sweep: Sweep) -> list[Any]:
        """Return the distinct values as the config reads them, for which a quoted "1e-4" is a number."""
        values: list[Any] = []
        for value in sweep.values:
            if isinstance(value, str):
                value = self.value_of(method, sweep, [sweep.key, value])
            if value not in values:
                values.append(value)
        return values

    def about(self, kind: str) -> About:
        return {"kind": kind, "source": self.source, "target": self.target, "seed": self.seed}

    def cell(self, method: str, labels: Sequence[Any], sweep: Sweep | None = None, value: Any = None) -> Iterator[Unit]:
        """labels: key and value of TRANSFER that set the amount; empty: as in file and overrides."""
        method_name = Path(method).stem
        part = method_name if sweep is None else f"{method_name}/{sweep.name}-{_plain(value)}"
        extra = [*labels, *([] if sweep is None else [sweep.key, str(value)])]
        cfg = self.cfg(method, "", "finetune", extra=extra)
        amount = label_amount(cfg, {file: name for name, file in self.lists.items()})
        name = f"finetune/{self.cell_name}/{part}/{_folder(amount)}/seed{self.seed}"
        cfg = self.cfg(method, name, "finetune", self.weights, extra)
        needs = self.source_name
        if task_of(cfg).starts_from == "estimator":
            shared = self.cfg("estimator", f"estimator/{self.cell_name}/seed{self.seed}", "estimator", self.weights)
            variant, estimator = estimator_cfg(shared, cfg)
            needs = str(Path(estimator.OUTPUT_DIR).relative_to(self.output))
            yield Unit(needs, estimator, (self.source_name,), {**self.about("estimator"), "variant": variant})
            cfg = self.cfg(method, name, "finetune", f"{estimator.OUTPUT_DIR}/model_final.pth", extra)
        about: About = {**self.about("finetune"), "method": method_name}
        about |= {"label_fraction": amount.fraction} if amount.fraction else {"label_count": amount.count}
        if amount.listed:
            names = sorted(listed_names("TRANSFER.LABEL_LIST", cfg.TRANSFER.LABEL_LIST))
            digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
            about |= {"label_list": amount.listed, "images": digest}
        if sweep is not None:
            about |= {"sweep": sweep.name, "key": sweep.key, "value": value}
        yield Unit(name, cfg, (needs,), about)

    def cfg(
        self, method: str, name: str, kind: str, weights: str = "", extra: Sequence[Any] = (), test: str = ""
    ) -> CfgNode:
        """weights: of the unit it needs, whatever the overrides say; empty: MODEL.WEIGHTS of files and overrides."""
        train = self.source if kind == "source" else self.target
        values: list[Any] = ["DATASETS.TRAIN", (split_name(train, "train"),)]
        values += ["DATASETS.TEST", (split_name(test or self.target, "val"),)]
        if kind != "source":
            values += ["DATASETS.SOURCE_TRAIN", (split_name(self.source, "train"),)]
            values += ["DATASETS.SOURCE_TEST", (split_name(self.source, "val"),)]
        for options in (self.plan.options, self.plan.kind_options.get(kind, {})):
            values += [item for key, value in options.items() for item in (key, value)]
        values += [*extra, "SEED", self.seed, *self.opts]
        if weights:
            values += ["MODEL.WEIGHTS", weights]
        return setup_cfg(self.plan.model, [*values, "OUTPUT_DIR", str(self.output / name)], method)


def estimator_cfg(shared: CfgNode, method: CfgNode) -> tuple[str, CfgNode]:
    """Return the estimator's training for a fine-tuning.

    Args:
        shared: the estimator's training of the pair. method: the fine-tuning.

    Returns:
        name of the variant, such as "square", and ``shared`` with the values of ``method`` for ``ESTIMATOR_KEYS``, in a
        folder that ends with that name; "" and ``shared`` where these are equal.
    """
    changed = {key: value for key, value in method.MODEL.TMT.items() if key in ESTIMATOR_KEYS}
    changed = {key: value for key, value in changed.items() if value != shared.MODEL.TMT[key]}
    variant = "-".join(_setting(key, changed[key]) for key in ESTIMATOR_KEYS if key in changed)
    values = {f"MODEL.TMT.{key}": value for key, value in changed.items()}
    folder = "-".join(filter(None, [shared.OUTPUT_DIR, variant]))
    return variant, replace_keys(shared, values | {"OUTPUT_DIR": folder})


def label_amount(cfg: CfgNode, names: Mapping[str, str] = {}) -> Labels:
    """Return the amount of labeled target images that a fine-tuning reads.

    names: names of lists by file; other lists have the name of their file.

    Raises:
        UserError: TRANSFER.LABEL_LIST cannot be read.
    """
    transfer, file = cfg.TRANSFER, cfg.TRANSFER.LABEL_LIST
    if not task_of(cfg).learns_from_target_labels(cfg):
        return Labels(0.0, 0)
    if file:
        return Labels(0.0, len(listed_names("TRANSFER.LABEL_LIST", file)), names.get(file, Path(file).stem))
    return Labels(0.0, transfer.LABEL_COUNT) if transfer.LABEL_COUNT else Labels(transfer.LABEL_FRACTION)


def _folder(amount: Labels) -> str:
    if amount.fraction:
        return f"labels{_plain(amount.fraction)}"
    return f"count{amount.count}" + (f"-{amount.listed}" if amount.listed else "")


def _setting(key: str, value: Any) -> str:
    """Return a key of the estimator and its value as a part of a file name; of a string only the value."""
    if isinstance(value, str):
        return value
    if isinstance(value, CfgNode):
        return "_".join(f"{name.lower()}{item}" for name, item in value.items())
    return key.lower() + "_".join(map(str, value if isinstance(value, (list, tuple)) else [value]))


def _plain(value: Any) -> str:
    """Return a value as a part of a file name."""
    if isinstance(value, float):
        return f"{value:g}"
    return "_".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def select(units: Sequence[Unit], pattern: str | None) -> list[Unit]:
    """Return the units whose name contains ``pattern`` (with * and ?), and the units that they need.

    Raises:
        UserError: there are none.
    """
    if pattern is None:
        return list(units)
    by_name = {unit.name: unit for unit in units}
    pending = [unit.name for unit in units if fnmatch.fnmatch(unit.name, f"*{pattern}*")]
    if not pending:
        nearest = did_you_mean(pattern, by_name)
        hint = f"--dry-run lists the names of units{nearest}"
        raise UserError("no unit has such a name", key="--only", value=pattern, hint=hint)
    selected = set()
    while pending:
        name = pending.pop()
        selected.add(name)
        pending += [need for need in by_name[name].needs if need not in selected]
    return [unit for unit in units if unit.name in selected]
