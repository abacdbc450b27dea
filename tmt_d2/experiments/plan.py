"""Plan of a matrix: the transfers to run, from a matrix file (see ``configs/matrix``) or made in Python for a pair."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from tmt_d2.adaptation import task_of
from tmt_d2.config import setup_cfg
from tmt_d2.config.file import UniqueKeys, find_config, find_method
from tmt_d2.config.ranges import COUNT, NONNEGATIVE, SIZES, Range
from tmt_d2.errors import UserError, did_you_mean

# Config keys that follow from the unit.
PLANNED = (
    "OUTPUT_DIR",
    "TRANSFER.METHOD",
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "DATASETS.SOURCE_TRAIN",
    "DATASETS.SOURCE_TEST",
)
NOT_SWEPT = (*PLANNED, "SEED", "MODEL.WEIGHTS")
LISTED = {  # config keys that a matrix file has lists for
    "SEED": "seeds",
    "TRANSFER.LABEL_FRACTION": "label_fractions",
    "TRANSFER.LABEL_COUNT": "label_counts",
}
GUESS = {"iteration": NONNEGATIVE, "evaluation": NONNEGATIVE}
SCORES = {"images": Range(2, whole=True), "pixels": Range(2, whole=True), "draws": COUNT}
RENDER = {"train": COUNT, "val": COUNT, "size": SIZES, "seed": Range(0, whole=True)}
KINDS = ("source", "evaluation", "scores", "estimator", "finetune")


class PlanLoader(UniqueKeys):
    """``UniqueKeys`` that reads 1e-4 as a number, as the config does; YAML 1.1 requires 1.0e-4."""


PlanLoader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Sweep:
    """``key`` takes each of ``values`` for each of ``methods``."""

    name: str
    key: str
    values: tuple[Any, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Content of a matrix file; its keys are these attributes, and ``sources`` and ``targets`` instead of ``pairs``.

    Attributes:
        model: a config file of ``configs/models``.
        pairs: (source, target) in the order of the file.
        methods: names of ``configs/methods``, or YAML files.
        seeds: SEED of the units; empty: that of the model's config.
        label_fractions, label_counts: amounts of target labels; both and ``label_lists`` empty: as in the config files.
        label_lists: lists of labeled images by name; {source}, {target} and {seed} in a file name are filled in.
        options: KEY VALUE overrides for all units.
        kind_options: overrides for the units of a kind.
        scores: arguments of ``score_checkpoint``; None: no scores.
        guess: seconds of an "iteration" and of an "evaluation", until units were measured.
        render: "train" and "val" images of each data set to render before the first unit; None: the data exists.
        source_weights: checkpoint of a source model that is not trained here; not a key of the file.
    """

    model: Path
    pairs: tuple[tuple[str, str], ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    label_fractions: tuple[float, ...] = ()
    label_counts: tuple[int, ...] = ()
    label_lists: Mapping[str, str] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    kind_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Mapping[str, int] | None = None
    guess: Mapping[str, float] = field(default_factory=dict)
    render: Mapping[str, Any] | None = None
    source_weights: Path | None = None


def check_methods(model: Path, methods: Sequence[str]) -> None:
    """
    Raises:
        UserError: a method does not exist, is not a fine-tuning, or has the name of another one.
    """
    if len({Path(method).stem for method in methods}) < len(methods):
        raise UserError("each needs a name of its own", key="methods", value=[*methods])
    for method in methods:
        task = task_of(setup_cfg(model, method=method))
        if not task.fine_tunes:
            raise UserError(f"its TRANSFER.METHOD is {task.name}, which is no fine-tuning", key="methods", value=method)


def read_plan(path: str | Path) -> Plan:
    """
    Raises:
        FileNotFoundError, UserError: its key is the file; its text names the key of the file.
    """
    path = find_config(path)
    if not path.is_file():
        raise FileNotFoundError(f"matrix file {path} does not exist")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), PlanLoader)  # a SafeLoader subclass
        return _plan(content, path.parent)
    except (UserError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(" ".join(str(error).split()), key=path) from error


def _plan(content: Any, folder: Path) -> Plan:
    keys = [each.name for each in fields(Plan) if each.name != "source_weights"]
    _mapping(content, "", ["sources", "targets", *keys])
    if not isinstance(content.get("model"), str):
        raise UserError("not a config file, relative to this one", key="model", value=content.get("model"))
    model = folder / content["model"]
    methods = _methods(content, folder, model)
    counts = tuple(_list(content, "label_counts", int, ()))
    if min(counts, default=1) < 1:
        raise UserError("each must be at least 1", key="label_counts", value=counts, hint="methods may use no label")
    kind_options = _mapping(content.get("kind_options", {}), "kind_options", KINDS)
    sweeps = _mapping(content.get("sweeps", {}), "sweeps")
    render = content.get("render")
    return Plan(
        model=model,
        pairs=_pairs(content),
        methods=methods,
        seeds=tuple(_list(content, "seeds", int, [1])),
        label_fractions=tuple(
            map(float, _list(content, "label_fractions", float, () if counts or "label_lists" in content else [1.0]))
        ),
        label_counts=counts,
        label_lists=_label_lists(content, folder),
        sweeps=tuple(_sweep(str(name), item, folder, model, methods) for name, item in sweeps.items()),
        options=_options(content.get("options", {}), "options"),
        kind_options={kind: _options(options, f"kind_options.{kind}") for kind, options in kind_options.items()},
        scores=None if content.get("scores") is None else _numbers(content["scores"], "scores", SCORES),
        guess=_numbers(content.get("guess", {}), "guess", GUESS),
        render=None if render is None else _numbers(render, "render", RENDER),
    )


def _options(content: Any, key: str) -> dict[str, Any]:
    options = _mapping(content, key)
    for name in options:
        if name in LISTED:
            raise UserError("it has a list of its own", key=f"{key}.{name}", hint=f"use {LISTED[name]}")
        if name in PLANNED or not isinstance(name, str):
            raise UserError("it follows from the unit, or is no key of the config", key=f"{key}.{name}")
    return options


def _pairs(content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if "pairs" not in content:
        sources = _list(content, "sources", str)
        targets = _list(content, "targets", str, sources)
        pairs = [(source, target) for source in sources for target in targets if source != target]
        if not pairs:
            raise UserError("these and the sources make no pair", key="targets", value=targets)
        return tuple(dict.fromkeys(pairs))
    names = _list(content, "pairs", str)
    if "sources" in content or "targets" in content:
        raise UserError("give either pairs, or sources and targets", key="pairs", value=names)
    pairs = [(source, target) for source, _, target in (name.partition("-") for name in names)]
    if not all(target and "-" not in target for _, target in pairs):
        raise UserError("each is written SOURCE-TARGET, without other hyphens", key="pairs", value=names)
    return tuple(dict.fromkeys(pairs))


def _methods(
    content: Mapping[str, Any], folder: Path, model: Path, default: Sequence[str] | None = None
) -> tuple[str, ...]:
    methods = _list(content, "methods", str, default)
    methods = [str(find_method(each, folder)) if each.endswith(".yaml") else each for each in methods]
    check_methods(model, methods)
    return tuple(methods)


def _label_lists(content: Mapping[str, Any], folder: Path) -> dict[str, str]:
    lists = _mapping(content.get("label_lists", {}), "label_lists")
    for name, file in lists.items():
        try:
            str(file).format(source="", target="", seed=1)
        except (AttributeError, LookupError, ValueError) as error:
            hint = "its fields may be {source}, {target} and {seed}"
            raise UserError(key=f"label_lists.{name}", value=file, hint=hint) from error
    if len({*lists.values()}) < len(lists):
        raise UserError("two names have the same file", key="label_lists", value=lists)
    return {str(name): str(folder / str(file)) for name, file in lists.items()}


def _sweep(name: str, item: Any, folder: Path, model: Path, methods: Sequence[str]) -> Sweep:
    where = f"sweeps.{name}"
    _mapping(item, where, ["key", "values", "methods"])
    key = item.get("key")
    if not isinstance(key, str):
        raise UserError("not a key of the config, such as MODEL.TMT.P_T", key=f"{where}.key", value=key)
    if key in NOT_SWEPT or key.startswith("TRANSFER.ESTIMATOR."):
        hint = "use seeds or pairs"
        raise UserError("it follows from the unit, or does not affect it", key=f"{where}.key", value=key, hint=hint)
    try:
        values = tuple(_list(item, "values", object))
        if len({isinstance(value, bool) for value in values}) > 1:
            raise UserError("YAML reads on, off, yes and no as true and false: quote them", key="values", value=values)
        return Sweep(name, key, values, _methods(item, folder, model, methods))
    except UserError as error:
        raise UserError(str(error), key=where) from error


def _numbers(value: Any, key: str, ranges: Mapping[str, Range]) -> dict[str, Any]:
    values = _mapping(value, key, ranges)
    for name, number in values.items():
        if number not in ranges[name] or isinstance(number, list) != bool(ranges[name].count):
            kind = "whole numbers" if ranges[name].whole else "numbers"
            raise UserError(f"must be {kind}, {ranges[name]}", key=f"{key}.{name}", value=number)
    return {name: tuple(number) if isinstance(number, list) else number for name, number in values.items()}


def _mapping(value: Any, key: str, known: Collection[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError("must hold keys and values", key=key, value=value)
    for name in value:
        if known is not None and name not in known:
            hint = f"use {', '.join(known)}{did_you_mean(str(name), known)}"
            raise UserError("unknown key", key=f"{key}.{name}".lstrip("."), hint=hint)
    return value


def _list(content: Mapping[str, Any], key: str, kind: type, default: Sequence[Any] | None = None) -> list[Any]:
    if key not in content and default is not None:
        return list(default)
    value = content.get(key)
    kinds = (int, float) if kind is float else kind

    def fits(item: Any) -> bool:
        return isinstance(item, kinds) and (kind is object or not isinstance(item, bool))  # True is an int, too

    if not isinstance(value, (list, tuple)) or not value or not all(map(fits, value)):
        name = {str: "name", int: "whole number", float: "number", object: "value"}[kind]
        raise UserError(f"must be a list of at least one {name}", key=key, value=value)
    return list(value)
