"""Text files that name images, one per line."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write

NAMES_SHOWN = 5  # in a message
BYTE_ORDER_MARK = "\ufeff"
_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")\s*(?:#.*)?')


def list_line(name: str) -> str:
    """Return the line that ``listed_names`` reads as ``name``.

    It is the name itself, or a JSON string where the name would be read as something else: a comment, blanks at its
    ends, a line break, bytes that are not UTF-8.
    """
    if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
        return json.dumps(name)
    plain = name == name.strip() and not re.search(r'^["\ufeff]|(?:^|\s)#|[\r\n]', name) and name
    return name if plain else json.dumps(name, ensure_ascii=False)


def names_in_lists(files: Sequence[str]) -> list[str]:
    """Return the file name of each image; the absolute path where another image has the same file name."""
    names = [os.path.basename(file) for file in files]
    count = Counter(names)
    return [name if count[name] == 1 else os.path.abspath(file) for name, file in zip(names, files)]


def write_names(path: str | Path, names: Iterable[str]) -> None:
    """Write a list that ``listed_names`` reads, atomically."""
    with atomic_write(path) as file:
        file.writelines(f"{list_line(name)}\n".encode() for name in names)


def listed_names(key: str, file: str | Path, is_name: Callable[[str], bool] = lambda line: False) -> list[str]:
    """Return the names in the lines of ``file``, each once.

    ``#`` at the beginning of a line or after a blank starts a comment. Blanks at the ends of a line and a byte order
    mark are ignored. A name in quotes is a JSON string (see ``list_line``).

    Args:
        key: config key or option that names the file, for messages.
        is_name: returns True if a whole line is a name; comments and blanks are then part of it.

    Raises:
        UserError: the file cannot be read, or names no image.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", key=key, value=str(file)) from error
    if b"\0" in data:
        raise UserError("is no text in UTF-8", key=key, value=str(file))
    text = data.decode("utf-8", "surrogateescape").removeprefix(BYTE_ORDER_MARK)
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    names = list(dict.fromkeys(name for line in lines if (name := line if is_name(line) else _name(line))))
    if not names:
        raise UserError("names no image", key=key, value=str(file))
    return names


def _name(line: str) -> str:
    """Return the name in a line; empty if there is none."""
    if quoted := _QUOTED.fullmatch(line.strip()):
        try:
            return str(json.loads(quoted[1], strict=False))
        except ValueError:
            pass  # the quotes are part of the name
    return re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()


def listed_indices(
    key: str,
    file: str | Path,
    paths: Sequence[str],
    names: Sequence[Iterable[str]],
    folders: Sequence[str | Path] = (),
    subset: bool = False,
) -> tuple[list[int], list[str]]:
    """Return the ascending indices of the images that a list names, and its lines without an image.

    A line is a name, a file name or a path: absolute, or relative to the working folder, the list or one of
    ``folders``. Symbolic links are resolved.

    Args:
        key: config key or option that names the list, for messages.
        paths: path of each image.
        names: further names of each image.
        subset: lines without an image are no error, unless there are no others.

    Raises:
        UserError: the list cannot be read, or a line matches no image, or several.
    """
    by_name: dict[str, set[int]] = {}
    for index, (path, own) in enumerate(zip(paths, names, strict=True)):
        for name in {path, os.path.basename(path), *own}:
            by_name.setdefault(name, set()).add(index)
    lines = listed_names(key, file, by_name.__contains__)
    matches = {line: by_name.get(line, set()) for line in lines}
    if not all(matches.values()):  # resolving every path is slow, and most lists hold names
        by_path: dict[str, set[int]] = {}
        for index, path in enumerate(paths):
            by_path.setdefault(os.path.realpath(path), set()).add(index)
        places = ("", Path(file).parent, *folders)
        for line in lines:
            candidates = (by_path.get(os.path.realpath(os.path.join(place, line))) for place in places)
            matches[line] = matches[line] or next(filter(None, candidates), set())
    unknown = [line for line in lines if not matches[line]]
    several = [line for line in lines if len(matches[line]) > 1]
    if several:
        raise _wrong_lines(key, file, several, "lines match several images", "write paths")
    if unknown and (not subset or len(unknown) == len(lines)):
        raise _wrong_lines(key, file, unknown, f"of {len(lines)} lines match no image", f"a path is {paths[0]}")
    return sorted(set().union(*matches.values())), unknown


def _wrong_lines(key: str, file: str | Path, lines: Sequence[str], problem: str, hint: str) -> UserError:
    return UserError(f"{len(lines)} {problem} ({first_names(lines)})", key=key, value=str(file), hint=hint)


def first_names(names: Sequence[str]) -> str:
    """Return the first names for a message."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
