"""Images of a folder that the names in an export mean. Tools rename images: see ``ImageNames.find``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from tmt_d2.data.image_files import IMAGES

UPLOAD = re.compile(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)")  # Label Studio's prefix of the name of an uploaded file


def bare(path: str) -> str:
    """Return a path without the suffix of an image; other suffixes belong to the name."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in IMAGES else path


def _flat(path: str) -> str:
    return re.sub(r"[/_\-\s]+", "_", bare(path))


KEYS = (str, bare, lambda path: PurePosixPath(path).name, lambda path: PurePosixPath(bare(path)).name, _flat)


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
        stem; the same text with folders joined by "_" or "-". Of several, the ones with the most folders in common
        count. Then the same without Label Studio's prefix.
        """
        for text in dict.fromkeys((name, UPLOAD.sub(r"\1", name))):
            for key, table in zip(KEYS, self._tables):
                if found := table.get(key(text)):
                    common = [_common_end(text, self._paths[index]) for index in found]
                    return [index for index, length in zip(found, common) if length == max(common)]
        return []


def _common_end(first: str, second: str) -> int:
    """Return the number of folders that two paths share at their end."""
    parents = zip(PurePosixPath(first).parts[-2::-1], PurePosixPath(second).parts[-2::-1])
    count = 0
    for one, other in parents:
        if one != other:
            break
        count += 1
    return count
