"""Arguments that commands share, parsing, errors and exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tmt_d2.errors import UserError, one_line_errors


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


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with the status that ``main`` returns, or as ``one_line_errors`` does."""
    status = None
    with one_line_errors():
        status = main()
    sys.exit(status)
