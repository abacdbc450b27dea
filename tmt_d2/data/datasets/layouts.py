"""Layouts of data sets on disk, and the pairing of images and labels.

Files are matched by patterns below a folder, such as ``gtFine/train/*/{stem}_gtFine_labelIds.png``: ``*`` is any text
within one name, and ``{stem}`` captures the text that image and label share.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tmt_d2.data.reader import DataError, MissingDataError

CAPTURE = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass
class Listing:
    """The files of one split.

    Attributes:
        pairs: stem -> (image, label), sorted by stem.
        images_alone: images without a label. labels_alone: labels without an image.
        left_out: stems of frames that are known to be bad; they are not in ``pairs``.
        absent: stems in the data set's list of the split without an image.
        unlabeled: stem -> image without a label on purpose, sorted by stem.
        subset: images or labels are missing on purpose.
    """

    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)
    images_alone: list[str] = field(default_factory=list)
    labels_alone: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    unlabeled: dict[str, str] = field(default_factory=dict)
    subset: bool = False


@dataclass(frozen=True)
class Layout:
    """Layout of one data set below the root, as it is downloaded.

    Attributes:
        title: for messages.
        folder: the data set's folder below the root.
        images, labels: patterns with ``{split}``; where several match the same stem, the first is used.
        splits: split -> (its name on disk, the number of pairs in the full data set).
        members: for data sets whose splits share a folder: (folder, split) -> the stems of the split, or a predicate.
        bad: stems of known bad frames.
        unlabeled_allowed: images without a label are left out without an error.
    """

    title: str
    folder: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    splits: dict[str, tuple[str, int]]
    members: Callable[[Path, str], Callable[[str], bool] | frozenset[str]] | None = None
    bad: frozenset[str] = frozenset()
    unlabeled_allowed: bool = False

    def listing(self, root: str, split: str) -> Listing:
        """Pair the files of one split.

        Raises:
            MissingDataError: there are no images, or no labels.
            DataError: a file name or split list is not as the data set ships it.
        """
        folder = Path(root) / self.folder
        on_disk, _ = self.splits[split]
        images = self._find(folder, self.images, on_disk, "images")
        labels = self._find(folder, self.labels, on_disk, "labels")
        if self.members is None:
            return pair(images, labels)
        members = self.members(folder, split)
        inside = members.__contains__ if isinstance(members, frozenset) else members
        listing = pair(
            {stem: path for stem, path in images.items() if inside(stem)},
            {stem: path for stem, path in labels.items() if inside(stem)},
            self.bad,
        )
        if isinstance(members, frozenset):
            listing.absent = sorted(members - images.keys() - self.bad)
        return listing

    def _find(self, folder: Path, patterns: Sequence[str], on_disk: str, what: str) -> dict[str, str]:
        patterns = [pattern.replace("{split}", on_disk) for pattern in patterns]
        files: dict[str, str] = {}
        for pattern in reversed(patterns):
            files.update(find(folder, pattern))
        if not files:
            raise MissingDataError(
                f"{self.title} has no {what} like {' or '.join(patterns)}",
                key=folder,
                hint="set DETECTRON2_DATASETS, or render scenes with `python -m datasets.render`",
            )
        return files


def pair(images: Mapping[str, str], labels: Mapping[str, str], bad: Container[str] = ()) -> Listing:
    """Match images and labels (stem -> path) by stem."""
    listing = Listing()
    for stem, image in sorted(images.items()):
        if stem in bad:
            listing.left_out.append(stem)
        elif stem in labels:
            listing.pairs[stem] = (image, labels[stem])
        else:
            listing.images_alone.append(image)
    listing.labels_alone = [labels[stem] for stem in sorted(labels.keys() - images.keys()) if stem not in bad]
    return listing


def find(folder: str | Path, pattern: str) -> dict[str, str]:
    """Return stem -> path of all files below ``folder`` that match ``pattern``.

    The stem of a pattern with several captures, such as ``{drive}/{frame}.png``, is their texts joined by ``_`` in the
    alphabetical order of the captures' names. Hidden files (``._x.png``, which some archivers add) match neither
    ``*`` nor a capture. A folder that does not exist has no files.

    Raises:
        DataError: two files have the same stem.
    """
    files: dict[str, str] = {}
    for captured, path in _matches(str(folder), pattern.split("/"), {}):
        stem = "_".join(captured[name] for name in sorted(captured))
        if stem in files:
            raise DataError(f"{files[stem]} and {path} both have the name {stem!r}", key="pattern", value=pattern)
        files[stem] = path
    return files


def _matches(folder: str, parts: Sequence[str], captured: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    part, *rest = parts
    if "*" not in part and not CAPTURE.search(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _matches(path, rest, captured)
        elif os.path.isfile(path):
            yield captured, path
        return
    match = re.compile(r"(?!\.)" + _expression(part, captured, ends=not rest)).fullmatch
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        matched = match(entry.name)
        if matched and entry.is_dir() == bool(rest):
            together = captured | matched.groupdict()
            if rest:
                yield from _matches(entry.path, rest, together)
            else:
                yield together, entry.path


def _expression(part: str, captured: Mapping[str, str], ends: bool) -> str:
    """Return a regular expression. ends: of a file's name, the case of whose suffix does not matter."""
    expression, known = "", dict(captured)
    suffix = re.search(r"\.\w+$", part) if ends else None
    for piece in re.split(r"(\*|\{\w+\})", part[: suffix.start()] if suffix else part):
        name = piece[1:-1]
        if piece == "*":
            expression += ".*"
        elif not CAPTURE.fullmatch(piece):
            expression += re.escape(piece)
        elif name in captured:
            expression += re.escape(captured[name])
        else:
            expression += f"(?P={name})" if name in known else f"(?P<{name}>.+)"
            known[name] = ""
    return expression + (f"(?i:{re.escape(suffix[0])})" if suffix else "")
