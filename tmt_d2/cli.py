"""What the commands share."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from tmt_d2.errors import UserError

LOGGERS = ("detectron2", "fvcore", "tmt_d2")
USER_ERROR = 2  # exit status of a command that was given something it cannot use
INTERRUPTED = 130  # ... that ended by Ctrl-C with nothing to save, as shells have it
USER_ERRORS = (UserError, OSError, FloatingPointError)  # the last: a loss that is not finite


CONFIG_KEY = re.compile(
    r"(DATALOADER|DATASETS|GLOBAL|INPUT|MODEL|SOLVER|TEST|TRANSFER)(\.[A-Z0-9_]+)+|CUDNN_BENCHMARK|OUTPUT_DIR|SEED|VIS_PERIOD"
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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors that a user can mend end the command with one line on stderr and status 2.

    With TMT_TRACEBACK=1 in the environment they end it with Python's traceback instead. Any other error is a mistake
    of the program: its traceback is followed by one line that sums it up, and the status is 1. Ctrl-C is one line and
    status 130, where nothing takes it as a request to save and stop.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("TMT_TRACEBACK"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)  # noqa: T201  this is the command's answer
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(INTERRUPTED)
    except Exception as error:
        traceback.print_exc()
        summary = f"error: unexpected {type(error).__name__}: {one_line(error)}"
        print(summary, file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(1)


def run(main: Callable[[], int | None]) -> NoReturn:
    """End the process with the status that ``main`` returns, or as ``one_line_errors`` says."""
    status = None
    with one_line_errors():
        status = main()
    sys.exit(status)


def one_line(error: BaseException) -> str:
    """What happened, without the traceback that a loader's process puts around it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    message = str(error).strip()
    if "\nOriginal Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split()) or type(error).__name__


def log_to_screen() -> None:
    """Detectron2's coloured log lines of the first process, on stdout; calling it again changes nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    for name in LOGGERS:
        setup_logger(distributed_rank=comm.get_rank(), name=name)


@contextmanager
def log_file(folder: str | Path) -> Iterator[None]:
    """While the block runs, log lines also go to ``folder/log.txt`` (behind ``.rank<i>`` in other processes)."""
    log_to_screen()
    Path(folder).mkdir(parents=True, exist_ok=True)
    rank = comm.get_rank()
    handler = logging.FileHandler(
        Path(folder) / (f"log.txt.rank{rank}" if rank else "log.txt"), encoding="utf-8", errors="backslashreplace"
    )
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"))
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)
        handler.close()
