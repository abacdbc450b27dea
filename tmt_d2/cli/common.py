"""Parsing, errors and exit status of the commands."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tmt_d2.errors import UserError, one_line_errors

CONFIG_KEY = re.compile(
    r"(DATALOADER|DATASETS|GLOBAL|INPUT|LOGGING|MODEL|SELF_TRAINING|SOLVER|TEST|TRANSFER)(\.[A-Z0-9_]+)+|CUDNN_BENCHMARK|OUTPUT_DIR|SEED|VIS_PERIOD"
)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """``opts`` of the result has every KEY VALUE override, wherever it stands: also between and before options, and
    behind an option of several values.

    Args:
        arguments: those of the process by default.

    Raises:
        UserError: the last key has no value.
    """
    rest, overrides = [], []
    words = iter(sys.argv[1:] if arguments is None else arguments)
    for word in words:
        if not CONFIG_KEY.fullmatch(word):
            rest.append(word)
            continue
        value = next(words, None)
        if value is None or value.startswith("--"):
            raise UserError(f"{word} has no value behind it: overrides are KEY VALUE ...")
        overrides += [word, value]
    parsed = parser.parse_args(rest)
    parsed.opts = [*parsed.opts, *overrides]
    return parsed


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with the status that ``main`` returns, or as ``one_line_errors`` says."""
    status = None
    with one_line_errors():
        status = main()
    sys.exit(status)
