"""Check of the files of data sets: counts, pairs, broken files, label ids. Nothing is written."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES, IGNORE, LabelSpace
from tmt_d2.data.datasets.layouts import Listing
from tmt_d2.data.datasets.names import FAMILIES, QUICK_SAMPLE
from tmt_d2.data.datasets.registration import DATA_SETS
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.reader import (
    DataError,
    SizeError,
    UndefinedIdError,
    exif_orientation,
    read_image,
    read_image_of,
    read_label,
)
from tmt_d2.errors import UserError

IGNORED = "(ignored)"
MANIFEST = ".rendered.json"  # in folders of rendered scenes, which are smaller than the full data sets

PROBLEMS = {
    "missing": "files or lists missing",
    "unlabeled": "images without a label",
    "unused": "labels without an image",
    "unreadable": "files unreadable, truncated or wrongly encoded",
    "undefined ids": "labels with ids that the data set's table lacks",
    "sizes": "labels of another size than their image",
    "no classes": "no pixel has a class",
}


@dataclass(frozen=True)
class SplitFiles:
    """Files of a split to check.

    Attributes:
        expected: number of images in the full data set, where known.
        subset: images or labels are missing on purpose.
    """

    data_set: str
    name: str
    listing: Callable[[], Listing]
    label_space: LabelSpace
    expected: int | None = None
    subset: bool = False


@dataclass
class SplitReport:
    """Result of a check.

    Attributes:
        images: number of images on disk.
        pairs: number of images with a label. unlabeled: of images that have none on purpose.
        known_bad: number of frames that are left out as known to be bad.
        read: number of images read. labels_read: of labels read. labeled: of labels in which a pixel has a class.
        problems: messages by key of ``PROBLEMS``.
        sizes: number of images of each (width, height).
        oriented: images with an EXIF orientation other than 1.
        pixels: (256,) number of pixels of each train id.
    """

    label_space: LabelSpace
    expected: int | None = None
    images: int = 0
    pairs: int = 0
    unlabeled: int = 0
    known_bad: int = 0
    read: int = 0
    labels_read: int = 0
    labeled: int = 0
    problems: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in PROBLEMS})
    notes: list[str] = field(default_factory=list)
    oriented: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))

    def percent_of_pixels(self) -> dict[str, float]:
        """Return the percentage of each class, and of ignored pixels, among all pixels of the labels read."""
        percent = 100 * self.pixels / max(1, self.pixels.sum())
        classes = dict(zip(self.label_space.classes.names, percent.tolist()))
        return {**classes, IGNORED: float(percent[IGNORE])}

    def to_json(self) -> dict[str, Any]:
        plain = ("expected", "images", "pairs", "unlabeled", "known_bad", "read", "labels_read", "labeled")
        return {name: getattr(self, name) for name in (*plain, "notes", "oriented")} | {
            "sizes": {f"{width}x{height}": count for (width, height), count in sorted(self.sizes.items())},
            "percent_of_pixels": self.percent_of_pixels() if self.labels_read else {},
            "problems": {kind: messages for kind, messages in self.problems.items() if messages},
        }


def splits_to_check(name: str, root: str, subsets: bool = False) -> list[SplitFiles]:
    """Return the splits of a YAML file, or of a data set of ``FAMILIES``; none where its folder does not exist.

    Args:
        subsets: images or labels are missing on purpose.

    Raises:
        DataError: the YAML file is missing or wrong.
    """
    if name not in FAMILIES:
        custom = read_custom(name)
        return [
            SplitFiles(custom.name, split, partial(custom.listing, split), custom.label_space, subset=subsets)
            for split in custom.splits
        ]
    layout, label_space = DATA_SETS[name].layout, DATA_SETS[name].label_space
    folder = Path(root) / layout.folder
    if not folder.is_dir():
        return []
    rendered = any((above / MANIFEST).is_file() for above in (folder, Path(root) / Path(layout.folder).parts[0]))
    return [
        SplitFiles(name, split, partial(layout.listing, root, split), label_space, None if rendered else count, subsets)
        for split, (_, count) in layout.splits.items()
        # All frames of GTAV are checked only where the list of its splits is missing.
        if split != "all" or not (folder / "split.mat").is_file()
    ]


def check_split(split: SplitFiles, quick: bool = False) -> SplitReport:
    """List the files of a split and read all of them, or up to ``QUICK_SAMPLE`` images."""
    report = SplitReport(split.label_space, split.expected)
    try:
        listing = split.listing()
    except UserError as error:
        report.problems["missing"].append(str(error))
        return report
    report.pairs, report.unlabeled = len(listing.pairs), len(listing.unlabeled)
    report.known_bad = len(listing.left_out)
    report.images = report.pairs + report.unlabeled + len(listing.images_alone) + report.known_bad
    _check_counts(split, listing, report)
    pairs: list[tuple[str, str | None]] = list(listing.pairs.values())
    pairs += [(image, None) for image in listing.unlabeled.values()]
    if quick and len(pairs) > QUICK_SAMPLE:
        pairs = [pairs[index * (len(pairs) - 1) // (QUICK_SAMPLE - 1)] for index in range(QUICK_SAMPLE)]
    report.read = len(pairs)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        results = pool.map(partial(_read_pair, label_space=split.label_space), pairs)
        title, hidden = f"{split.data_set} {split.name}", not sys.stderr.isatty()
        for (image, _), (size, problems, pixels) in tqdm(
            zip(pairs, results), title, len(pairs), unit="image", leave=False, disable=hidden
        ):
            if exif_orientation(image) != 1:
                report.oriented.append(image)
            if size is not None:
                report.sizes[size] += 1
            if pixels is not None:
                report.labels_read += 1
                report.labeled += bool(pixels[:IGNORE].any())
                report.pixels += pixels
            for kind, message in problems:
                report.problems[kind].append(message)
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for thousands of files
    if report.labels_read and not report.labeled:
        report.problems["no classes"].append(f"every pixel of {report.labels_read} labels is ignored")
    return report


def _check_counts(split: SplitFiles, listing: Listing, report: SplitReport) -> None:
    classes = split.label_space.classes
    if classes.names != CITYSCAPES_CLASSES.names:
        absent = ", ".join(classes.names[index] for index in split.label_space.never_occurs)
        report.notes.append(f"classes: {', '.join(classes.names)}" + (f"; no id leads to: {absent}" if absent else ""))
    if split.subset or listing.subset:
        missing = {
            PROBLEMS["unlabeled"]: listing.images_alone,
            PROBLEMS["unused"]: listing.labels_alone,
            "names in its list without an image": listing.absent,
        }
        report.notes += [f"left out: {len(paths)} {what}, e.g. {paths[0]}" for what, paths in missing.items() if paths]
        return
    report.problems["unlabeled"], report.problems["unused"] = listing.images_alone, listing.labels_alone
    if split.expected not in (None, report.images):
        first = f"; the first missing frame is {listing.absent[0]}" if listing.absent else ""
        report.problems["missing"].append(f"{report.images} of {split.expected} images found{first}")


def _read_pair(
    pair: tuple[str, str | None], label_space: LabelSpace
) -> tuple[tuple[int, int] | None, list[tuple[str, str]], np.ndarray | None]:
    """Read one image and its label, if any.

    Returns:
        (width, height) of the image, or None; (kind, message) of each problem; (256,) number of pixels of each train
        id, or None.
    """
    image_path, label_path = pair
    size, problems, label = None, list[tuple[str, str]](), None
    if label_path is not None:
        try:
            label = read_label(label_path, label_space)
        except DataError as error:
            problems.append(("undefined ids" if isinstance(error, UndefinedIdError) else "unreadable", str(error)))
    try:
        if label is None:
            image = read_image(image_path)
        else:
            image = read_image_of({"file_name": image_path, LABEL: label_path}, size=label.shape[:2])
        size = (image.shape[1], image.shape[0])
    except DataError as error:
        problems.append(("sizes" if isinstance(error, SizeError) else "unreadable", str(error)))
    return size, problems, None if label is None else np.bincount(label.ravel(), minlength=256)
