"""Logging to the screen and to a file in a run's folder."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

LOGGERS = ("detectron2", "fvcore", "tmt_d2")


def log_to_screen() -> None:
    """Log from the first process to stdout, in Detectron2's format; a second call has no effect."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    for name in LOGGERS:
        setup_logger(distributed_rank=comm.get_rank(), name=name)


@contextmanager
def log_file(folder: str | Path) -> Iterator[None]:
    """Log to ``folder/log.txt`` within the block (in other processes to ``log.txt.rank<i>``)."""
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
