"""Locks on folders: one process, or one run of several processes, works in a folder at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from detectron2.utils import comm

from tmt_d2.errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # by the file system

_own: set[Path] = set()  # held by this process: POSIX locks do not exclude other threads of it
_own_lock = threading.Lock()


@contextmanager
def file_lock(path: Path, wait: bool = False) -> Iterator[str]:
    """Hold the lock file ``path`` within the block, after which it is removed.

    The kernel releases the lock when this process ends, however it ends. Forked processes, such as a data loader's,
    which may outlive it, do not hold it: POSIX locks are not inherited, those of ``flock`` are.

    Args:
        wait: block until another process releases the lock.

    Yields:
        "" if this process holds the lock, otherwise a description of the holder.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _own_lock:
        mine = path not in _own
        _own.add(path)
    if not mine:
        yield "this process"
        return
    try:
        with _open_locked(path, wait) as (file, holder):
            if not holder:
                file.truncate(0)
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"a run on {socket.gethostname()}, process {os.getpid()}, since {now}")
                file.flush()
            try:
                yield holder
            finally:
                if not holder:
                    path.unlink(missing_ok=True)
    finally:
        with _own_lock:
            _own.discard(path)


@contextmanager
def _open_locked(path: Path, wait: bool) -> Iterator[tuple[IO[str], str]]:
    """Open and lock ``path``; yield the file, and a description of the process that holds it instead, or ""."""
    while True:
        with path.open("a+") as file:
            holder = ""
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                elif error.errno in UNSUPPORTED:
                    logger.warning("%s: no locks on this file system, a second run will not be noticed", path.parent)
                else:
                    raise
            if holder or _is_open_file(path, file):
                yield file, holder
                return
            # The last holder removed the file between opening and locking it: the lock is on no file.


def _is_open_file(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def folder_lock(folder: str | Path, option: str = "OUTPUT_DIR") -> Iterator[None]:
    """Hold ``folder`` within the block, for all processes of this run; each of them must call this.

    Args:
        option: the config key or command-line option that names the folder.

    Raises:
        UserError: another run holds the folder; in all processes.
    """
    if not comm.is_main_process():
        _check_free(folder, option, "")
        yield
        return
    with file_lock(Path(folder) / LOCK) as holder:
        _check_free(folder, option, holder)
        yield


def _check_free(folder: str | Path, option: str, holder: str) -> None:
    holder = comm.all_gather(holder)[0]
    if holder:
        hint = f"wait for it, end it, or choose another {option}"
        raise UserError(f"in use by {holder}", key=option, value=str(folder), hint=hint)
