"""One run in a folder at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from detectron2.utils import comm

from tmt_d2.errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system


@contextmanager
def sole_run(folder: str | Path, option: str = "OUTPUT_DIR") -> Iterator[None]:
    """Hold ``folder`` for the block, for all processes of this run; every one of them must call it.

    The first process holds the lock. The kernel takes it back when that process ends, however it ends; its loader
    processes, which may outlive it for a moment, do not have it (a lock of POSIX is not inherited; flock's is).

    Args:
        option: the key or option that names the folder, for the message.

    Raises:
        UserError: another run has it; in all processes.
    """
    file, problem = _lock(Path(folder), option) if comm.is_main_process() else (None, "")
    problem = comm.all_gather(problem)[0]
    if problem:
        raise UserError(problem)
    try:
        yield
    finally:
        if file is not None:
            file.close()  # which unlocks it


def _lock(folder: Path, option: str) -> tuple[IO[str] | None, str]:
    """The locked file, or None and why not."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        if error.errno in UNSUPPORTED:
            logger.warning("%s: this file system has no locks: a second run in it would not be noticed", folder)
            return None, ""
        return None, f"{option} {folder} is in use by {holder}: wait for it, end it, or choose another {option}"
    file.truncate(0)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"a run on {socket.gethostname()}, process {os.getpid()}, since {now}")
    file.flush()
    return file, ""
