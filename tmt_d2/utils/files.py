"""Atomic writing of files, and reading the project's own."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from tmt_d2.errors import UserError

LONG_NAME = 200  # bytes; file systems allow 255, and the name of a temporary file is longer
REMEDY = "delete it, or choose another folder"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\..+?(?:\.(?P<host>[0-9a-f]{8}))?\.(?P<process>\d+)(?:\.[0-9a-f]{8})?\.tmp")
ABANDONED = 24 * 3600.0  # seconds after which nobody still writes a temporary file


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success flush it to disk and rename it to ``path``.

    Raises:
        OSError: with the path and, if the disk is full, the free space; the file at ``path`` is unchanged.
    """
    path = Path(path)
    name = path.name
    if len(os.fsencode(name)) > LONG_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    # A process on another machine that shares the folder may have the same id.
    temporary = path.with_name(f".{name}.{_HOST}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    # File names in the text need not be UTF-8.
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
    try:
        with temporary.open(mode, encoding=encoding, errors=errors) as file:
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


def check_writable(option: str, path: str | Path) -> None:
    """
    Raises:
        UserError: ``path``, the value of ``option``, cannot be written; checked before its content is computed.
    """
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError("cannot be written", key=option, value=str(path), hint="name a file in an existing folder")


def remove_temporaries(folder: str | Path) -> None:
    """Delete the temporary files below ``folder`` of processes that no longer run; those of other machines after a day.

    Names without a machine, of an earlier version, are those of this machine.
    """
    for path in Path(folder).rglob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if not match:
            continue
        with suppress(FileNotFoundError):  # its process may just have renamed it
            if match["host"] in (None, _HOST):
                is_left = not _is_alive(int(match["process"]))
            else:
                is_left = time.time() - path.stat().st_mtime > ABANDONED
            if is_left:
                path.unlink()


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # an earlier process had the same id
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_full(error: BaseException | None) -> bool:
    """Search the causes, too: PyTorch reports a failed write as RuntimeError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sync_folder(folder: Path) -> None:
    """Flush the folder, without which a rename does not survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> hashlib._Hash:
    """Return the hash of a file, which may be larger than memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as indented JSON, atomically; floats keep their precision, NaN and infinity become null."""
    with atomic_write(path, "w") as file:
        json.dump(finite(values), file, indent=1, allow_nan=False)
        file.write("\n")


def read_json(path: str | Path, keys: Iterable[str] = (), remedy: str = REMEDY) -> Any:
    """Return the mapping in a file of ``write_json``, which must have these keys.

    Raises:
        UserError: the file is damaged; its key is the file. FileNotFoundError: it does not exist.
    """
    try:
        return _mapping(json.loads(Path(path).read_text(encoding="utf-8")), keys)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error, remedy) from error


def read_json_lines(path: str | Path, keys: Iterable[str] = (), remedy: str = REMEDY) -> list[dict[str, Any]]:
    """Return the mapping in each line of a log.

    Raises: as ``read_json``; the message names the line.
    """
    values = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            values.append(_mapping(json.loads(line), keys))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"line {number}: {error}", remedy) from error
    return values


def read_npz(path: str | Path, keys: Iterable[str] = (), remedy: str = REMEDY) -> dict[str, np.ndarray]:
    """Return all arrays of a file of ``np.savez``, which must have these keys; no code in it is executed.

    Raises: as ``read_json``.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return _mapping({key: content[key] for key in content.files}, keys)
    except (FileNotFoundError, PermissionError):
        raise
    # Damaged bytes make the readers raise nearly anything; a plain array is not an archive (AttributeError).
    except (OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, NotImplementedError) as error:
        raise _damaged(path, error, remedy) from error
    except (zipfile.BadZipFile, zlib.error, SyntaxError, RuntimeError, MemoryError) as error:
        raise _damaged(path, error, remedy) from error


def _mapping(value: Any, keys: Iterable[str]) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a mapping")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    return value


def _damaged(path: str | Path, reason: BaseException | str, remedy: str) -> UserError:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return UserError(f"it is damaged ({text})", key=path, hint=remedy)


def finite(value: Any) -> Any:
    """Return ``value``, made of JSON types, with None in place of NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
