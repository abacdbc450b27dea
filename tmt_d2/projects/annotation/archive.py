"""Files of an export, read from a zip archive, a folder or a single file. Nothing is unpacked to disk."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tmt_d2.errors import UserError

LIMIT = 2**30  # bytes of all files of an export that are read
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)  # of the decoders


class Archive:
    """Read-only files of one export.

    Attributes:
        path: the zip archive, folder or file.
        names: paths of its files with "/" between folders, sorted; hidden files are left out.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], load: Callable[[str], bytes]) -> None:
        """
        Args:
            sizes: number of bytes of each file, decompressed. load: name -> content.
        """
        self.path, self.names = path, sorted(name for name in sizes if not _is_hidden(name))
        self._sizes, self._load, self._read = sizes, load, 0

    def where(self, name: str) -> str:
        """Return the name of a file for messages."""
        return f"{self.path}: {name}" if name else str(self.path)

    def select(self, is_wanted: Callable[[str], bool]) -> list[str]:
        """Return the files with a name that ``is_wanted``, which are read next.

        Raises:
            UserError: they are larger than ``LIMIT``, by the sizes in the archive's headers.
        """
        names = [name for name in self.names if is_wanted(name)]
        self._check(sum(self._sizes[name] for name in names))
        return names

    def read(self, name: str) -> bytes:
        """
        Raises:
            UserError: the file is damaged, or more than ``LIMIT`` bytes are read.
        """
        try:
            data = self._load(name)
        except DAMAGED as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"cannot be read ({reason})", key=self.where(name), hint="export again") from error
        self._read += len(data)
        self._check(self._read)
        return data

    def text(self, name: str) -> str:
        """
        Raises:
            UserError: the file is no text in UTF-8, or as ``read``.
        """
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError("is no text in UTF-8", key=self.where(name)) from error

    def _check(self, size: int) -> None:
        if size > LIMIT:
            message = f"its label files have {size / 2**20:.0f} MiB, at most {LIMIT / 2**20:.0f} are read"
            raise UserError(message, key=self.path, hint="export fewer images at once")


@contextmanager
def open_export(path: str | Path) -> Iterator[Archive]:
    """Open a zip archive, a folder or a file.

    Raises:
        UserError: it does not exist or is damaged, or a zip archive has a name outside of itself, a link, a repeated
            or an encrypted file.
    """
    path = Path(path)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    elif path.is_file() and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        try:
            opened = zipfile.ZipFile(path)
        except DAMAGED as error:
            raise UserError(f"is no complete zip archive ({error})", key=path, hint="export again") from error
        with opened:
            members = _members(path, opened.infolist())
            sizes = {name: member.file_size for name, member in members.items()}
            yield Archive(path, sizes, lambda name: _load(opened, members[name]))
        return
    elif path.is_file():
        files = {path.name: path}
    else:
        raise UserError("does not exist", key=path)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    yield Archive(path, sizes, lambda name: files[name].read_bytes())


def _load(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with opened.open(member) as file:
        return file.read(member.file_size + 1)  # of a longer stream not more than its header says


def _members(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return the files by name.

    Raises:
        UserError: as ``open_export``.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.replace("\\", "/")
        problem = ""
        if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
            problem = "leads out of the archive"
        elif stat.S_ISLNK(info.external_attr >> 16):
            problem = "is a link"
        elif info.flag_bits & 1:
            problem = "is encrypted"
        elif name in members:
            problem = "is there twice"
        if problem:
            raise UserError(problem, key=f"{path}: {info.filename}", hint="export again")
        if not info.is_dir():
            members[name] = info
    return members


def _is_hidden(name: str) -> bool:
    """Return True for files that archivers and file managers add."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
