"""Which units there are to be, from a matrix file (see ``configs/matrix``) or made in Python, as for a single pair."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from tmt_d2.config import setup_cfg
from tmt_d2.config.checks import COUNT, NONNEGATIVE, SIZES, Range
from tmt_d2.config.file import UniqueKeys, find_config
from tmt_d2.errors import UserError, did_you_mean

# Keys that each unit gets from the plan, under whose names it is recorded.
PLANNED = (
    "OUTPUT_DIR",
    "TRANSFER.STAGE",
    "TRANSFER.METHOD",
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "DATASETS.SOURCE_TRAIN",
    "DATASETS.SOURCE_TEST",
)
NOT_SWEPT = (*PLANNED, "SEED", "MODEL.WEIGHTS")
LISTED = {  # keys of the config that a matrix file has lists for
    "SEED": "seeds",
    "TRANSFER.LABEL_FRACTION": "label_fractions",
    "TRANSFER.LABEL_COUNT": "label_counts",
}
GUESS = {"iteration": NONNEGATIVE, "evaluation": NONNEGATIVE}
SCORES = {"images": Range(2, whole=True), "pixels": Range(2, whole=True), "draws": COUNT}
RENDER = {"train": COUNT, "val": COUNT, "size": SIZES, "seed": Range(0, whole=True)}
KINDS = ("source", "evaluation", "scores", "estimator", "finetune")


class _Loader(UniqueKeys):
    """``UniqueKeys`` that reads 1e-4 as a number, as the config does; YAML 1.1 wants 1.0e-4."""


_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
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
    """What a matrix file says, checked; its keys are these, and ``sources`` and ``targets`` instead of ``pairs``.

    pairs: (source, target) in the order of the file. methods: methods and variants, files of ``configs``. seeds: empty
    means SEED of ``source.yaml``. label_fractions, label_counts, labelled: all empty means what each method's file
    says. labelled: by name the lists of labelled pictures, files whose {source}, {target} and {seed} are filled in.
    options: KEY VALUE overrides for all units, and by kind for units of that kind. scores: arguments of
    ``score_checkpoint``, or None: no scores. guess: seconds of an "iteration" and of an "evaluation" where none was
    measured. render: "train" and "val" images of each data set that the command draws before the first unit; None: the
    data is there. source_weights: checkpoint of the source model, which is then not trained; of Python alone.
    """

    configs: Path
    pairs: tuple[tuple[str, str], ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    label_fractions: tuple[float, ...] = ()
    label_counts: tuple[int, ...] = ()
    labelled: Mapping[str, str] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    kind_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Mapping[str, int] | None = None
    guess: Mapping[str, float] = field(default_factory=dict)
    render: Mapping[str, Any] | None = None
    source_weights: Path | None = None


def check_methods(configs: Path, methods: Sequence[str]) -> None:
    """
    Raises:
        UserError: ``configs`` has no file for one, or it is the file of another stage.
    """
    known = sorted(path.stem for path in configs.glob("*.yaml") if path.stem not in ("Base", "source", "estimator"))
    unknown = [method for method in methods if method not in known]
    if unknown:
        remedy = ", ".join(known) or "another folder"
        nearest = did_you_mean(unknown[0], known)
        raise UserError(f"methods: {', '.join(unknown)} is no method or variant of {configs}: use {remedy}{nearest}")
    for method in methods:
        stage = setup_cfg(str(configs / f"{method}.yaml")).TRANSFER.STAGE
        if stage != "finetune":
            raise UserError(f"methods: {configs / method}.yaml has TRANSFER.STAGE {stage}: use a file that fine-tunes")


def read_plan(path: str | Path) -> Plan:
    """
    Raises:
        FileNotFoundError, UserError: one line with the file and the key.
    """
    path = find_config(path)
    if not path.is_file():
        raise FileNotFoundError(f"matrix file {path} does not exist")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader subclass
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    try:
        return _plan(content, path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _plan(content: Any, folder: Path) -> Plan:
    _mapping(
        content,
        "a matrix file",
        ["sources", "targets", *(each.name for each in fields(Plan) if each.name != "source_weights")],
    )
    if not isinstance(content.get("configs"), str):
        raise UserError(f"configs is {content.get('configs')!r}: it must name a folder, relative to this file")
    configs = folder / content["configs"]
    if not configs.is_dir():
        raise UserError(f"configs: {configs} is not a folder")
    methods = _methods(content, configs)
    fractions = () if {"label_counts", "labelled"} & content.keys() else [1.0]
    return Plan(
        configs=configs,
        pairs=_pairs(content),
        methods=methods,
        seeds=tuple(_list(content, "seeds", int, [1])),
        label_fractions=tuple(map(float, _list(content, "label_fractions", float, fractions))),
        label_counts=_label_counts(content),
        labelled=_labelled(content, folder),
        sweeps=tuple(
            _sweep(str(name), item, configs, methods)
            for name, item in _mapping(content.get("sweeps", {}), "sweeps").items()
        ),
        options=_options(content.get("options", {}), "options"),
        kind_options={
            kind: _options(options, f"kind_options.{kind}")
            for kind, options in _mapping(content.get("kind_options", {}), "kind_options", KINDS).items()
        },
        scores=None if content.get("scores") is None else _numbers(content["scores"], "scores", SCORES),
        guess=_numbers(content.get("guess", {}), "guess", GUESS),
        render=_render(content),
    )


def _label_counts(content: Mapping[str, Any]) -> tuple[int, ...]:
    counts = tuple(_list(content, "label_counts", int, ()))
    if min(counts, default=1) < 1:
        raise UserError(
            f"label_counts is {list(counts)}: each must be at least 1; self-training-daformer uses no label"
        )
    return counts


def _options(content: Any, what: str) -> dict[str, Any]:
    options = _mapping(content, what)
    for key in options:
        if key in LISTED:
            raise UserError(f"{what}.{key}: give it as {LISTED[key]}: [{options[key]}]")
        if key in PLANNED or not isinstance(key, str):
            raise UserError(f"{what}.{key}: each unit has its own, or it is no key of the config: leave it out")
    return options


def _pairs(content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if "pairs" not in content:
        sources = _list(content, "sources", str)
        targets = _list(content, "targets", str, sources)
        pairs = [(source, target) for source in sources for target in targets if source != target]
        if not pairs:
            raise UserError(f"sources {sources} and targets {targets} make no pair: name another target")
        return tuple(dict.fromkeys(pairs))
    if "sources" in content or "targets" in content:
        raise UserError("pairs: give either pairs, or sources and targets")
    pairs = [tuple(pair.split("-")) for pair in _list(content, "pairs", str)]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError("pairs: each is written source-target, e.g. cityscapes-bdd100k; no name may have a -")
    return tuple(dict.fromkeys((source, target) for source, target in pairs))


def _methods(content: Mapping[str, Any], configs: Path, default: Sequence[str] | None = None) -> tuple[str, ...]:
    methods = tuple(_list(content, "methods", str, default))
    check_methods(configs, methods)
    return methods


def _labelled(content: Mapping[str, Any], folder: Path) -> dict[str, str]:
    lists = _mapping(content.get("labelled", {}), "labelled")
    for name, file in lists.items():
        try:
            str(file).format(source="", target="", seed=1)
        except (AttributeError, LookupError, ValueError) as error:
            fields = "{source}, {target} and {seed}"
            raise UserError(f"labelled.{name} is {file}: its fields may be {fields}") from error
    if len({*lists.values()}) < len(lists):
        raise UserError(f"labelled: {', '.join(map(str, lists))} are not all different files")
    return {str(name): str(folder / str(file)) for name, file in lists.items()}


def _sweep(name: str, item: Any, configs: Path, methods: Sequence[str]) -> Sweep:
    try:
        _mapping(item, "the sweep", [each.name for each in fields(Sweep) if each.name != "name"])
        key = item.get("key")
        if not isinstance(key, str):
            raise UserError(f"key is {key!r}: it must be a key of the config, e.g. MODEL.TMT.P_T")
        if key in NOT_SWEPT or key.startswith("TRANSFER.ESTIMATOR."):
            raise UserError(f"key {key} is the matrix's own, or has no effect on a fine-tuning: use seeds or pairs")
        values = tuple(_list(item, "values", object))
        if len({isinstance(value, bool) for value in values}) > 1:
            raise UserError(f"values are {list(values)}: YAML reads on, off, yes and no as such, quote them")
        return Sweep(name, key, values, _methods(item, configs, methods))
    except UserError as error:
        raise UserError(f"sweeps.{name}: {error}") from error


def _render(content: Mapping[str, Any]) -> dict[str, Any] | None:
    if content.get("render") is None:
        return None
    values = _numbers(content["render"], "render", RENDER)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _numbers(value: Any, what: str, ranges: Mapping[str, Range]) -> dict[str, Any]:
    values = _mapping(value, what, ranges)
    for key, number in values.items():
        if not ranges[key].admits(number):
            kind = "whole numbers, " if ranges[key].whole else "numbers, "
            raise UserError(f"{what}.{key} is {number!r}: it takes {kind}{ranges[key]}")
    return values


def _mapping(value: Any, what: str, known: Collection[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r:.60}: it must hold keys and values")
    for key in value:
        if known is not None and key not in known:
            raise UserError(
                f"{what} has the unknown key {key!r}: use {', '.join(known)}{did_you_mean(str(key), known)}"
            )
    return value


def _list(content: Mapping[str, Any], key: str, kind: type, default: Sequence[Any] | None = None) -> list[Any]:
    value = content.get(key, default)
    if key not in content and default is not None:
        return list(default)
    kinds = (int, float) if kind is float else kind

    def fits(item: Any) -> bool:
        return isinstance(item, kinds) and (kind is object or not isinstance(item, bool))  # True is an int, too

    if not isinstance(value, (list, tuple)) or not value or not all(map(fits, value)):
        each = {str: "name", int: "whole number", float: "number", object: "value"}[kind]
        raise UserError(f"{key} is {value!r}: it must be a list of at least one {each}")
    return list(value)
