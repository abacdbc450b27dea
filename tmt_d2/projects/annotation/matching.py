"""Images of a folder that the names in an export mean. Tools rename images: see ``ImageNames.find``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from tmt_d2.data.image_files import IMAGES

# Label Studio's prefix of the name of an uploaded file, with its folder: it forgets the one that the file was in.
UPLOAD = re.compile(r"(?:^(?:.*/)?(?:images|upload/\d+)/|(?<![^/]))[0-9a-f]{8}-(?=[^/]+$)")


def bare(path: str) -> str:
    """Return a path without the suffix of an image; other suffixes belong to the name."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in IMAGES else path


def _flat(path: str) -> str:
    return re.sub(r"[/_\-\s]+", "_", bare(path))


def _file_name(path: str) -> str:
    return PurePosixPath(path).name


def _stem(path: str) -> str:
    return _file_name(bare(path))


KEYS = (str, bare, _file_name, _stem, _flat)


class ImageNames:
    """Search of images by the names that tools give them."""

    def __init__(self, paths: Sequence[str]) -> None:
        """
        Args:
            paths: of the images below their common folder.
        """
        self._paths = paths
        self._tables: list[dict[str, list[int]]] = []
        for key in KEYS:
            table: dict[str, list[int]] = {}
            for index, path in enumerate(paths):
                table.setdefault(key(path), []).append(index)
            self._tables.append(table)

    def find(self, name: str) -> list[int]:
        """Return the images that ``name`` means: one, none, or several if it is ambiguous.

        The first that exists counts: the same path; the same path but for the suffix; the same file name; the same
        stem; the same text with folders joined by "_" or "-". A file name or stem in other folders does not count: one
        path has to end with the folders of the other. Of several, the ones with the most folders in common count. Then
        the same without Label Studio's prefix.
        """
        for text in dict.fromkeys((name, UPLOAD.sub("", name))):
            for key, table in zip(KEYS, self._tables):
                common = {index: _common_end(text, self._paths[index]) for index in table.get(key(text), ())}
                if key in (_file_name, _stem):
                    depths = {index: min(_depth(text), _depth(self._paths[index])) for index in common}
                    common = {index: count for index, count in common.items() if count == depths[index]}
                if common:
                    return [index for index, count in common.items() if count == max(common.values())]
        return []


def distance(name: str, path: str) -> tuple[bool, int]:
    """Return how unlike the path of an image a name is that means it: (False, 0) is the path but for its suffix."""
    return not f"/{bare(name)}".endswith(f"/{bare(path)}"), abs(_depth(name) - _depth(path))


def _depth(path: str) -> int:
    return len(PurePosixPath(path).parts) - 1


def _common_end(first: str, second: str) -> int:
    """Return the number of folders that two paths share at their end."""
    parents = zip(PurePosixPath(first).parts[-2::-1], PurePosixPath(second).parts[-2::-1])
    count = 0
    for one, other in parents:
        if one != other:
            break
        count += 1
    return count
