"""Reading a config and checking its values."""

from __future__ import annotations

import ast
import importlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

import tmt_d2
from tmt_d2.config.access import flatten, get_key, replace_keys
from tmt_d2.config.file import find_config, load_config_file
from tmt_d2.config.keys import ALLOWED, REMOVED, RENAMED, Registered, add_tmt_config
from tmt_d2.config.ranges import SIZES, Range
from tmt_d2.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

TESTED_ON = {"DATASETS.TRAIN": "DATASETS.TEST", "DATASETS.SOURCE_TRAIN": "DATASETS.SOURCE_TEST"}


def setup_cfg(config_file: str | Path, opts: Sequence[Any] = (), method: str | Path = "") -> CfgNode:
    """Return the frozen and checked config of ``merge_cfg``.

    A test split that still comes from a file while an override names the training split is logged as a warning: it may
    be of another data set. The modules in the environment variable TMT_IMPORT, separated by commas, are imported before
    values are checked: they may register data sets, backbones, ...

    Raises:
        FileNotFoundError, UserError: as ``merge_cfg``, or a value with which no task can run.
    """
    cfg, values = merge_cfg(config_file, opts, method)
    _import_modules(os.environ.get("TMT_IMPORT", ""))
    check_cfg(cfg)
    cfg.freeze()
    for train, test in TESTED_ON.items():
        if train in opts[::2] and test not in opts[::2] and test in values:
            names, files = ", ".join(get_key(cfg, test)), f"{config_file}, method {method}" if method else config_file
            logger.warning("%s is overridden, and %s is not: it is %s, of %s", train, test, names, files)
    return cfg


def merge_cfg(
    config_file: str | Path, opts: Sequence[Any] = (), method: str | Path = ""
) -> tuple[CfgNode, dict[str, Any]]:
    """Merge a config file, a method over it, and KEY VALUE overrides over both; no model is imported.

    Nothing in a file is executed: see ``load_config_file``, which also describes ``_BASE_`` and ``_METHODS_``. A whole
    number stands for a float, and a plain name for a list of one. OUTPUT_DIR is output/<config file>/<method> if there
    is a method and neither file nor override sets it.

    Returns:
        the config, whose values are not checked beyond their type, and the values of the files by dotted key.

    Raises:
        FileNotFoundError: the file, or one of its bases, does not exist.
        UserError: an unknown key, or a value of a wrong type.
    """
    if not config_file:
        raise UserError("no config file", hint="name one, e.g. --config-file configs/models/tiny.yaml")
    if len(opts) % 2:
        raise UserError("the override has no value", key=opts[-1], hint="overrides are KEY VALUE ...")
    values = flatten(load_config_file(find_config(config_file), method))
    if method:
        values.setdefault("OUTPUT_DIR", f"output/{Path(config_file).stem}/{Path(method).stem}")
    cfg = get_cfg()
    add_tmt_config(cfg)
    defaults = flatten(cfg)
    files = f"{config_file}, method {method}" if method else f"{config_file}"
    for source, pairs in ((files, values.items()), ("an override", zip(opts[::2], opts[1::2]))):
        for key, value in pairs:
            if key in REMOVED and source == "an override":
                raise UserError("this key was removed", key=key)
            if key in RENAMED:
                raise UserError(f"this key of {source} is now {RENAMED[key]}", key=key)
            if key in REMOVED:
                if value and isinstance(value, (int, float)):
                    logger.warning("%s of %s is %s: it was removed and has no effect", key, source, value)
                continue
            if key not in defaults:
                raise UserError(f"{source} has this unknown key{did_you_mean(key, defaults)}", key=key)
            message = f"{source} needs a value of type {type(defaults[key]).__name__}"
            try:
                cfg.merge_from_list([key, _read(value, defaults[key])])
            except ValueError as error:  # of another type
                raise UserError(message, key=key, value=value) from error
            if get_key(cfg, key) is None and defaults[key] is not None:  # Detectron2 takes None for any type
                raise UserError(message, key=key, value=value)
    return cfg, values


def _import_modules(names: str) -> None:
    for name in filter(None, names.split(",")):
        try:
            importlib.import_module(name.strip())
        except ModuleNotFoundError as error:
            raise UserError(str(error), key="TMT_IMPORT", value=name, hint="put its folder into PYTHONPATH") from error


def _read(value: Any, default: Any) -> Any:
    """Return ``value``, which may be text, in the type of ``default`` if it can be converted without loss."""
    try:
        literal = ast.literal_eval(value) if isinstance(value, str) else value  # as Detectron2 reads it
    except (ValueError, SyntaxError):
        literal = value
    if isinstance(default, float) and type(literal) is int:
        return float(literal)
    if isinstance(default, (tuple, list)) and isinstance(literal, str) and all(isinstance(x, str) for x in default):
        return (literal,)
    return value


def check_cfg(cfg: CfgNode) -> None:
    """Check the values (see ``check_values``), the device, and the names of architectures and backbones.

    Raises:
        UserError: a value that would only fail, or mislead, after training began.
    """
    check_values(cfg)
    tmt_d2.register()  # architectures and backbones, whose names are values
    for key, allowed in ALLOWED.items():
        if isinstance(allowed, Registered):
            _check_choice(key, get_key(cfg, key), allowed)
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UserError("no device", key="MODEL.DEVICE", value=cfg.MODEL.DEVICE, hint="cuda, cuda:1 or cpu") from error


def check_values(cfg: CfgNode) -> None:
    """Check all values that need no import of a model, nor of the modules in TMT_IMPORT.

    Raises:
        UserError: a value that would only fail, or mislead, after training began.
    """
    for key, allowed in ALLOWED.items():
        value = get_key(cfg, key)
        if isinstance(allowed, Range) and value not in allowed:
            raise UserError(f"must be {allowed}", key=key, value=value)
        if isinstance(allowed, tuple):
            _check_choice(key, value, allowed)
    crop, former, head = cfg.INPUT.CROP, cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    if crop.ENABLED and crop.TYPE != "absolute":
        raise UserError("only absolute crops are implemented", key="INPUT.CROP.TYPE", value=crop.TYPE)
    if crop.ENABLED and crop.SIZE not in SIZES:
        raise UserError("must be height and width in pixels", key="INPUT.CROP.SIZE", value=crop.SIZE)
    if former.HIDDEN_DIM % former.NHEADS:
        message = f"must be a multiple of NHEADS, {former.NHEADS}"
        raise UserError(message, key="MODEL.MASK_FORMER.HIDDEN_DIM", value=former.HIDDEN_DIM)
    if head.NORM == "GN" and head.CONVS_DIM % 32:
        message = "must be a multiple of 32 with NORM GN"
        raise UserError(message, key="MODEL.SEM_SEG_HEAD.CONVS_DIM", value=head.CONVS_DIM)


def _check_choice(key: str, value: Any, allowed: Iterable[Any]) -> None:
    if value not in allowed:
        known = [str(each) for each in allowed]
        hint = f"choose one of {', '.join(known)}{did_you_mean(str(value), known)}"
        raise UserError("this does not exist", key=key, value=value, hint=hint)


def model_settings(cfg: CfgNode) -> str:
    """Return MODEL as YAML without WEIGHTS and DEVICE: the settings that outputs of the same weights depend on."""
    return replace_keys(cfg, {"MODEL.WEIGHTS": "", "MODEL.DEVICE": ""}).MODEL.dump()
