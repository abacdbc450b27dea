"""Looks through the data sets below a root, file by file, and says what would go wrong in training.

    python -m datasets.check                            # all data sets below $DETECTRON2_DATASETS (default: datasets)
    python -m datasets.check --quick                    # names and counts, and 20 files of every split
    python -m datasets.check --root /data --data-sets cityscapes gtav
    python -m datasets.check --data-sets my_city.yaml   # a data set of your own (see tmt_d2/data/datasets/custom.py)
    python -m datasets.check --subsets                  # only parts of the data sets are there, on purpose

Checked for every split: the number of images against the full data set's, images without labels and labels without
images, files that are empty, truncated or damaged, label ids that the data set does not define (such as labels of
Mapillary Vistas v2.0), labels of another size than their image, and the frames that are left out because they are
known to be bad. A warning, not a problem, are pictures with an EXIF orientation: they are read as stored, or turned
where only the turned picture has the size of its label (see `read_image` in tmt_d2/data/reader.py). Of a data set of
your own also the classes are named, and those that no id leads to. Nothing is written below the root.

Exit status: 0 all is well, 1 there are problems, 2 nothing was found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate
from tqdm import tqdm

from tmt_d2.cli.common import run
from tmt_d2.data.class_lists import RGB
from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES, IGNORE, TRAIN_IDS, LabelSpace
from tmt_d2.data.datasets.layouts import Listing
from tmt_d2.data.datasets.registration import DATA_SETS, dataset_root
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.reader import (
    DataError,
    SizeError,
    UndefinedIdError,
    exif_orientation,
    read_image,
    read_label,
    read_pair,
)
from tmt_d2.errors import did_you_mean
from tmt_d2.utils.files import check_writable
from tmt_d2.visualization.overlays import label_overlay
from tmt_d2.visualization.panels import Panel, Row, draw, save
from tmt_d2.visualization.sizes import shrink

FAMILIES = tuple(family for family in DATA_SETS if family != "mapillary_b")  # that one has the files of "mapillary"
QUICK_SAMPLE = 20  # pairs read per split
SHOWN = 3  # messages printed per split and kind
IGNORED = "(ignored)"
SHEET_PAIRS, SHEET_SIDE = 4, 640  # images of a split on the sheet, their longer side
MANIFEST = ".rendered.json"  # the renderer leaves it in its folders: these are small on purpose

KINDS = {
    "missing": "files or lists missing",
    "unlabeled": "images without a label",
    "unused": "labels without an image",
    "unreadable": "files unreadable, truncated or wrongly encoded",
    "undefined ids": "labels whose ids are not those of the data set's table",
    "sizes": "labels of another size than their image",
    "no classes": "not one labeled pixel",
}


@dataclass(frozen=True)
class Split:
    """One split to look through; `expected` is its number of images where that is known."""

    data_set: str
    name: str
    listing: Callable[[], Listing]
    label_space: LabelSpace
    expected: int | None
    subset: bool = False  # on purpose: what is missing is no problem


@dataclass
class Findings:
    """What was found in one split.

    `problems` are messages by kind (the keys of `KINDS`), `sizes` counts (width, height);
    `oriented` are the pictures with an EXIF orientation other than 1, which is no problem; `unlabeled` counts those
    that are meant to have no label; `notes` are about what is on purpose; `pixels` counts train ids in `labels_read`
    labels, of which `labeled` have a pixel with a class.
    """

    found: int = 0
    expected: int | None = None
    pairs: int = 0
    read: int = 0
    known_bad: int = 0
    problems: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    oriented: list[str] = field(default_factory=list)
    unlabeled: int = 0
    notes: list[str] = field(default_factory=list)
    labels_read: int = 0
    labeled: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    label_space: LabelSpace = TRAIN_IDS

    def shares(self) -> dict[str, float]:
        """Percent of all pixels of the labels, by class, and of those that have none."""
        total = max(1, int(self.pixels.sum()))
        return {
            **{name: 100 * int(count) / total for name, count in zip(self.label_space.classes.names, self.pixels)},
            IGNORED: 100 * int(self.pixels[IGNORE]) / total,
        }

    def has_problems(self) -> bool:
        """Whether there is any problem of any kind."""
        return any(self.problems.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes as "WIDTHxHEIGHT"."""
        by_area = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        shown = {
            "smallest": by_area[:1],
            "most common": [s for s, _ in self.sizes.most_common(1)],
            "largest": by_area[-1:],
        }
        return {
            "found": self.found,
            "expected": self.expected,
            "pairs": self.pairs,
            "read": self.read,
            "known bad, left out": self.known_bad,
            "sizes": {name: f"{size[0][0]}x{size[0][1]}" for name, size in shown.items() if size},
            "EXIF orientation": self.oriented,
            "unlabeled on purpose": self.unlabeled,
            "notes": self.notes,
            "labeled": self.labeled,
            "percent of pixels": self.shares() if self.labels_read else {},
            "problems": {kind: messages for kind, messages in self.problems.items() if messages},
        }


def check_split(split: Split, workers: int, quick: bool) -> Findings:
    """List the files of one split and read them (or, if `quick`, up to `QUICK_SAMPLE` of them)."""
    findings = Findings(expected=split.expected, label_space=split.label_space)
    try:
        listing = split.listing()
    except (FileNotFoundError, DataError) as error:
        findings.problems["missing"].append(str(error))
        return findings
    findings.pairs, findings.unlabeled = len(listing.pairs), len(listing.unlabeled)
    findings.known_bad = len(listing.left_out)
    findings.found = findings.pairs + findings.unlabeled + len(listing.images_alone) + findings.known_bad
    findings.notes = _class_notes(split.label_space)
    subset = split.subset or listing.subset
    if not subset:
        findings.problems["unlabeled"] = listing.images_alone
        findings.problems["unused"] = listing.labels_alone
    elif left_out := [
        f"{len(paths)} {what}, the first is {paths[0]}"
        for what, paths in (
            (KINDS["unlabeled"], listing.images_alone),
            (KINDS["unused"], listing.labels_alone),
            ("names of its list without an image", listing.absent),
        )
        if paths
    ]:
        findings.notes.append(f"a subset on purpose, left out are {'; '.join(left_out)}")
    if not subset and split.expected not in (None, findings.found):
        message = f"{findings.found} of {split.expected} images found"
        if listing.absent:
            message += f"; the first frame that is missing is {listing.absent[0]}"
        findings.problems["missing"].append(message)

    pairs: list[tuple[str, str | None]] = list(listing.pairs.values())
    pairs += [(image, None) for image in listing.unlabeled.values()]
    if quick and len(pairs) > QUICK_SAMPLE:
        pairs = [pairs[index * (len(pairs) - 1) // (QUICK_SAMPLE - 1)] for index in range(QUICK_SAMPLE)]
    findings.read = len(pairs)
    title = f"{split.data_set} {split.name}"
    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(partial(_check_pair, label_space=split.label_space), pairs)
        for image, size, problems, pixels in tqdm(
            results, title, len(pairs), unit="pair", leave=False, disable=not sys.stderr.isatty()
        ):
            if exif_orientation(image) != 1:
                findings.oriented.append(image)
            if size is not None:
                findings.sizes[size] += 1
            if pixels is not None:
                findings.labels_read += 1
                findings.labeled += bool(pixels[:IGNORE].any())
                findings.pixels += pixels
            for kind, message in problems:
                findings.problems[kind].append(message)
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for thousands of files
    if findings.labels_read and not findings.labeled:
        findings.problems["no classes"].append(f"every pixel of the {findings.labels_read} labels read is ignored")
    return findings


def _class_notes(label_space: LabelSpace) -> list[str]:
    """Which classes a data set has, where they are not the 19, and those that none of its ids leads to."""
    classes = label_space.classes
    if classes.names == CITYSCAPES_CLASSES.names:
        return []
    absent = ", ".join(classes.names[index] for index in label_space.never_occurs)
    names = f"{len(classes)} classes of its own: {', '.join(classes.names)}"
    return [f"{names}; no id leads to: {absent}" if absent else names]


def _check_pair(
    pair: tuple[str, str | None], label_space: LabelSpace
) -> tuple[str, tuple[int, int] | None, list[tuple[str, str]], np.ndarray | None]:
    """Read one (image, label): the image, its (width, height) where it can be read, (kind, message) of each problem,
    (256,) how many pixels have each train id, where the label can be read."""
    image_path, label_path = pair
    record = {"file_name": image_path, "sem_seg_file_name": label_path}
    if label_path is not None:
        try:
            image, label = read_pair(record, label_space)
            return image_path, (image.shape[1], image.shape[0]), [], np.bincount(label.ravel(), minlength=256)
        except DataError:
            pass  # once more, one file at a time, so that one wrong file does not hide another
    size: tuple[int, int] | None = None
    problems: list[tuple[str, str]] = []
    try:
        height, width = read_image(image_path).shape[:2]
        size = (width, height)
    except DataError as error:
        problems.append(("unreadable", str(error)))
    if label_path is None:
        return image_path, size, problems, None
    pixels: np.ndarray | None = None
    try:
        pixels = np.bincount(read_label(label_path, label_space).ravel(), minlength=256)
    except UndefinedIdError as error:
        problems.append(("undefined ids", str(error)))
    except DataError as error:
        problems.append(("unreadable", str(error)))
    if not problems:
        try:
            read_pair(record, label_space)
        except SizeError as error:
            problems.append(("sizes", str(error)))
    return image_path, size, problems, pixels


def splits_of(name: str, root: str, subsets: bool = False) -> list[Split]:
    """The splits of a data set of `FAMILIES`, or of a YAML file; none where the data set's folder is not there.

    subsets: they are parts of the data sets, on purpose.

    Raises:
        FileNotFoundError, DataError: the YAML file is missing or wrong.
    """
    if name not in FAMILIES:
        custom = read_custom(name)
        return [
            Split(custom.name, split, partial(custom.listing, split), custom.label_space, None, subsets)
            for split in custom.splits
        ]
    layout, label_space = DATA_SETS[name].layout, DATA_SETS[name].label_space
    folder = Path(root) / layout.folder
    if not folder.is_dir():
        return []
    complete = not any((above / MANIFEST).is_file() for above in (folder, Path(root) / Path(layout.folder).parts[0]))
    return [
        Split(name, split, partial(layout.listing, root, split), label_space, count if complete else None, subsets)
        for split, (_, count) in layout.splits.items()
        # All frames of GTAV are looked through only where the list of its splits is missing.
        if split != "all" or not (folder / "split.mat").is_file()
    ]


def check(
    names: Sequence[str], root: str, workers: int, quick: bool, subsets: bool = False
) -> dict[str, dict[str, Findings]]:
    """Data set -> split -> findings, of the data sets that are there."""
    report: dict[str, dict[str, Findings]] = {}
    for name in names:
        for split in splits_of(name, root, subsets):
            report.setdefault(split.data_set, {})[split.name] = check_split(split, workers, quick)
    return report


def contact_sheet(splits: Sequence[Split]) -> Figure:
    """Images under the colors of their labels, ignored pixels black: a row for each split with labels that can be read.

    Raises:
        DataError: there is no image with a label.
    """
    rows: list[Row] = []
    legend: dict[tuple[str, RGB], None] = {}
    for split in splits:
        try:
            pairs = list(split.listing().pairs.values())
        except (FileNotFoundError, DataError):
            continue  # named in the report
        panels = []
        for place in range(min(SHEET_PAIRS, len(pairs))):
            image_path, label_path = pairs[place * len(pairs) // min(SHEET_PAIRS, len(pairs))]
            try:
                image, label = read_pair({"file_name": image_path, LABEL: label_path}, split.label_space)
            except DataError:
                continue
            classes = split.label_space.classes
            legend |= dict.fromkeys(classes.legend(label[label != IGNORE]))
            overlay = label_overlay(shrink(image, SHEET_SIDE), label, classes, strength=0.6)
            panels.append(Panel(overlay, Path(image_path).stem[-30:]))
        if panels:
            rows.append(Row(panels, f"{split.data_set} {split.name}"))
    if not rows:
        raise DataError("--sheet: there is no image with a label to show")
    return draw(rows, "Images under the colors of their labels", list(legend))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = _parse(arguments)
    try:
        report = check(options.data_sets or FAMILIES, options.root, options.workers, options.quick, options.subsets)
    except (FileNotFoundError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    absent = [name for name in options.data_sets or FAMILIES if name in FAMILIES and name not in report]
    if options.json:
        _write_json(options.json, options.root, report, absent)
    if not report:
        print(
            f"nothing found in {options.root}: none of the folders "
            f"{', '.join(DATA_SETS[name].layout.folder for name in absent)} is there; set DETECTRON2_DATASETS "
            "(or --root), or make small embedded scenes with `python -m tmt_d2.projects.street_scenes.render`"
        )
        return 2
    _print_report(report)
    if options.sheet:
        names = options.data_sets or FAMILIES
        try:
            sheet = contact_sheet([each for name in names for each in splits_of(name, options.root, options.subsets)])
        except DataError as error:
            print(error, file=sys.stderr)
            return 1
        save(sheet, options.sheet)
        print(f"{options.sheet}: {SHEET_PAIRS} images of every split under the colors of their labels")
    if absent:
        print(f"not in {options.root}: {', '.join(absent)}")
    problems = any(findings.has_problems() for splits in report.values() for findings in splits.values())
    return int(problems or bool(options.data_sets and absent))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=dataset_root(), help="folder that holds the data sets (now: %(default)s)")
    parser.add_argument(
        "--data-sets",
        nargs="+",
        default=(),
        metavar="NAME",
        help=f"which: {', '.join(FAMILIES)}, or YAML files of your own; without it, all that are there",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything found into FILE, every message included")
    parser.add_argument("--sheet", metavar="FILE.png", help="write an overview of images under their labels' colors")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="files read at once (now: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help=f"read only {QUICK_SAMPLE} pairs of every split")
    parser.add_argument("--subsets", action="store_true", help="only parts of the data sets are there, on purpose")
    options = parser.parse_args(arguments)
    for name in options.data_sets:
        if name not in FAMILIES and not name.endswith((".yaml", ".yml")):
            hint = did_you_mean(name, FAMILIES)
            parser.error(f"--data-sets {name}: should be one of {', '.join(FAMILIES)}, or a YAML file{hint}")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: should be at least 1")
    for option, file in (("--json", options.json), ("--sheet", options.sheet)):
        if file and Path(file).resolve().is_relative_to(Path(options.root).resolve()):
            parser.error(f"{option} {file}: lies below the root {options.root}, where nothing is written")
    if options.sheet:
        if not options.sheet.endswith((".png", ".pdf")):
            parser.error(f"--sheet {options.sheet}: should end with .png or .pdf")
        check_writable("--sheet", options.sheet)
    return options


def _print_report(report: dict[str, dict[str, Findings]]) -> None:
    everything = [findings for splits in report.values() for findings in splits.values()]
    kinds = [kind for kind in KINDS if any(findings.problems[kind] for findings in everything)]
    sizes = ["smallest", "most common", "largest"]
    rows = []
    for data_set, splits in report.items():
        for split, findings in splits.items():
            counts = [
                findings.found,
                "-" if findings.expected is None else findings.expected,
                findings.read,
                findings.labeled,
            ]
            problems = [len(findings.problems[kind]) or "" for kind in kinds]
            shown = findings.to_json()["sizes"]
            rows.append(
                [data_set, split, *counts, findings.known_bad, *problems, *(shown.get(size, "") for size in sizes)]
            )
    print(tabulate(rows, ["data set", "split", "images", "of", "read", "labeled", "known bad", *kinds, *sizes]))
    for data_set, splits in report.items():
        shares = {split: found.shares() for split, found in splits.items() if found.labels_read}
        if shares:
            space = next(iter(splits.values())).label_space
            absent = {space.classes.names[index] for index in space.never_occurs}
            rows = [[name, *(each[name] for each in shares.values())] for name in next(iter(shares.values()))]
            rows = [[name, *values] for name, *values in rows if name not in absent or any(values)]
            print(f"\n{data_set}, percent of the pixels of the labels read:")
            print(tabulate(rows, ["", *shares], floatfmt=".2f"))
    for data_set, splits in report.items():
        for split, findings in splits.items():
            for kind, messages in findings.problems.items():
                for message in messages[:SHOWN]:
                    print(f"{data_set} {split}, {KINDS[kind]}: {message}")
                if len(messages) > SHOWN:
                    print(f"{data_set} {split}, {KINDS[kind]}: ... {len(messages)} in all (--json lists them)")
            for note in findings.notes:
                print(f"{data_set} {split}: {note}")
            if findings.oriented:
                print(
                    f"{data_set} {split}, warning: {len(findings.oriented)} of {findings.read} pictures have an EXIF "
                    f"orientation other than 1, the first is {findings.oriented[0]}; they are read as stored, or "
                    "turned where only that has the label's size: look whether it fits its label"
                )


def _write_json(file: str, root: str, report: dict[str, dict[str, Findings]], absent: list[str]) -> None:
    content = {
        "root": os.path.abspath(root),
        "data_sets": {name: {split: f.to_json() for split, f in splits.items()} for name, splits in report.items()},
        "not_found": absent,
    }
    unfinished = Path(file).with_name(f".{Path(file).name}.unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, file)


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
