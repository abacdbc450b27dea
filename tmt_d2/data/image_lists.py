"""Lists of images, one a line: the only reader and the only writer of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write

NAMES_SHOWN = 5  # of a list's wrong ones
BYTE_ORDER_MARK = "\ufeff"
_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")\s*(?:#.*)?')


def list_line(name: str) -> str:
    """The line of a list that ``listed_names`` reads as ``name``: the name as it is, or in the quotes of JSON where it
    would be read as something else (a comment, blanks at its ends, a line break, bytes that are not UTF-8)."""
    if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
        return json.dumps(name)
    plain = name == name.strip() and not re.search(r'^["\ufeff]|(?:^|\s)#|[\r\n]', name) and name
    return name if plain else json.dumps(name, ensure_ascii=False)


def write_names(path: str | Path, names: Iterable[str]) -> None:
    """Write a list that ``listed_names`` reads, atomically."""
    with atomic_write(path) as file:
        file.writelines(f"{list_line(name)}\n".encode() for name in names)


def listed_names(key: str, file: str | Path, is_name: Callable[[str], bool] = lambda line: False) -> list[str]:
    """The names in the lines of ``file``, each once.

    ``#`` at the beginning of a line or behind a blank begins a comment, blanks at the ends of a line and a byte order
    mark do not count, and a name in quotes is JSON's (``list_line``).

    Args:
        key: where the file comes from, for messages.
        is_name: says of a line whether it is a name as it stands; such a line is not searched for comments and blanks.

    Raises:
        UserError: it cannot be read, or there is none.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{key} {file} cannot be read: {error.strerror}") from error
    if b"\0" in data:
        raise UserError(f"{key} {file} cannot be read: it is not text in UTF-8, save it as such")
    text = data.decode("utf-8", "surrogateescape").removeprefix(BYTE_ORDER_MARK)
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    names = list(dict.fromkeys(name for line in lines if (name := line if is_name(line) else _name(line))))
    if not names:
        raise UserError(f"{key} {file} names no image")
    return names


def _name(line: str) -> str:
    """Empty where there is none."""
    if quoted := _QUOTED.fullmatch(line.strip()):
        try:
            return str(json.loads(quoted[1], strict=False))
        except ValueError:
            pass  # a name that has quotes of its own
    return re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()


class ImageNames:
    """Which images the lines of a list mean: by name, by the name of the file, or by a path to it.

    A path is absolute, or relative to the working folder, to the list, or to one of ``folders``; symbolic links count
    as what they lead to.
    """

    def __init__(
        self, paths: Sequence[str], names: Sequence[Iterable[str]], folders: Sequence[str | Path] = ()
    ) -> None:
        """
        Args:
            paths: of the images. names: of each image those by which it is known beside its path.
        """
        self.paths, self.folders = paths, folders
        self.places: dict[str, set[int]] = {}
        for index, (path, own) in enumerate(zip(paths, names, strict=True)):
            for name in {path, os.path.basename(path), *own}:
                self.places.setdefault(name, set()).add(index)
        self._by_real_path: dict[str, set[int]] | None = None

    def find(self, key: str, file: str | Path) -> dict[str, set[int]]:
        """Name in the list -> the indices of the images that it means, which may be none or several.

        Raises:
            UserError: as ``listed_names``.
        """
        wanted = listed_names(key, file, self.places.__contains__)
        return {name: self.places.get(name) or self._by_path(name, Path(file).parent) for name in wanted}

    def _by_path(self, name: str, folder: Path) -> set[int]:
        if self._by_real_path is None:  # costly for many images, and most lists name files
            self._by_real_path = {}
            for index, path in enumerate(self.paths):
                self._by_real_path.setdefault(os.path.realpath(path), set()).add(index)
        for place in ("", folder, *self.folders):
            if found := self._by_real_path.get(os.path.realpath(os.path.join(place, name))):
                return found
        return set()


def shown(names: Sequence[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
