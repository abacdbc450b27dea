"""Writing files so that a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success it is flushed to disk and renamed over ``path``.

    Raises:
        OSError: with the path and, where the disk is full, the space left; what was at ``path`` is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        if _is_full(error):
            free = shutil.disk_usage(path.parent).free / 2**20
            raise OSError(errno.ENOSPC, f"disk full while writing {path}: {free:.0f} MiB free") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: str | Path) -> None:
    """Delete what ``atomic_write`` left below ``folder`` in processes that were killed."""
    for path in Path(folder).rglob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # this process has just begun: an earlier one had its id
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_full(error: BaseException | None) -> bool:
    """PyTorch reports a failed write as RuntimeError, with the reason behind it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sync_folder(folder: Path) -> None:
    """A rename survives a power failure only once the folder is on disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """``values`` as indented JSON, atomically; floats keep their full precision, what is not a number becomes null."""
    with atomic_write(path, "w") as file:
        json.dump(finite(values), file, indent=1, allow_nan=False)
        file.write("\n")


def finite(value: Any) -> Any:
    """``value``, made of what JSON knows, with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
