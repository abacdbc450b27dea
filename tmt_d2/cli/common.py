"""Arguments that commands share, parsing, errors and exit status.

``--help`` and wrong arguments must not wait for PyTorch and Detectron2, which take seconds to import. So a command
module imports at its top only what its ``parser()`` needs. ``main`` parses, checks by the functions below, and then
imports what does the work; any other function in the module imports what it uses.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tmt_d2.config.file import find_config, load_config_file
from tmt_d2.errors import UserError, one_line_errors
from tmt_d2.utils.memory import reuse_freed_memory

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config-file, --method and the KEY VALUE overrides: the arguments of ``setup_cfg``."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a model of configs/models, or any config")
    method = "a method of configs/methods, or a YAML file, merged over the config file"
    parser.add_argument("--method", default="", metavar="NAME", help=method)
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``opts``: KEY VALUE ..., which may stand anywhere but directly behind an option of several values."""
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides, e.g. SEED 3")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse arguments, those of the process by default, of which some are the overrides ``opts``.

    Raises:
        UserError: the last key has no value.
    """
    args = parser.parse_intermixed_args(arguments)
    if len(args.opts) % 2:
        raise UserError("the override has no value", key=args.opts[-1], hint="overrides are KEY VALUE ...")
    return args


def check_config(config_file: str | Path, opts: Sequence[str] = (), method: str = "") -> CfgNode:
    """Check files, keys and values of a config before a model is imported: files even without PyTorch.

    Returns:
        the merged config; its data sets and weights are not read.

    Raises:
        FileNotFoundError, UserError: as ``merge_cfg`` and ``check_values``.
    """
    load_config_file(find_config(config_file), method)
    from tmt_d2.config import check_values, merge_cfg

    cfg, _ = merge_cfg(config_file, opts, method)
    check_values(cfg)
    return cfg


def check_file(option: str, path: str | Path) -> None:
    """
    Raises:
        FileNotFoundError: the file that an option names does not exist; an empty name and a URL pass.
    """
    if str(path) and ":/" not in str(path) and not Path(path).is_file():
        raise FileNotFoundError(f"{option} {path} {'is a folder' if Path(path).is_dir() else 'does not exist'}")


def check_place(option: str, place: str) -> None:
    """
    Raises:
        FileNotFoundError: ``place`` is neither a file nor a folder, and no name of a registered split, which is a word.
    """
    if not Path(place).exists() and not re.fullmatch(r"[\w-]+", place):
        raise FileNotFoundError(f"{option} {place}: no such image, folder, list or video")


def check_output_folder(output: Path, place: str = "", option: str = "") -> None:
    """
    Raises:
        UserError: --output is a file, or lies in the folder ``place`` of ``option``, whose files would be taken for
            input next time.
    """
    if output.exists() and not output.is_dir():
        raise UserError("this is a file, not a folder", key="--output", value=str(output))
    if place and Path(place).is_dir() and output.resolve().is_relative_to(Path(place).resolve()):
        raise UserError(f"lies in {option} {place}", key="--output", value=str(output), hint="choose another folder")


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with the status that ``main`` returns, or as ``one_line_errors`` does."""
    status = None
    reuse_freed_memory()
    with one_line_errors():
        status = main()
    sys.exit(status)
