"""Import of an export: label files, their data set and the list of the labeled images."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import yaml

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.image_lists import first_names, names_in_lists, write_names
from tmt_d2.data.reader import exif_orientation, stored_size
from tmt_d2.errors import UserError
from tmt_d2.inference.folder import CLASSES, write_classes
from tmt_d2.inference.images import InputImages, find_images
from tmt_d2.projects.annotation.formats import Size, read_export
from tmt_d2.projects.annotation.labels import LabelClasses, classes_of_json
from tmt_d2.projects.annotation.matching import ImageNames, bare, distance
from tmt_d2.utils.files import atomic_write

LABELS, DATA_SET, LIST = "labels", "dataset.yaml", "labeled.txt"
HEADER = "# Written again by every import: copy this file to change it.\n"
UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in patterns of a data set, or in a zip archive
SIDEWAYS = range(5, 9)  # EXIF orientations that exchange height and width


KINDS = {
    "written": "written",
    "unchanged": "already imported",
    "kept": "kept, differs from the export (--replace)",
    "renamed": "matched under another name",
    "repeated": "labeled several times, the last counts",
    "empty": "left out, no pixel has a class",
    "additional": "left out, no such image",
    "ambiguous": "left out, several images have this name",
    "wrong_size": "left out, of another size than the image",
    "turned": "left out, an EXIF orientation keeps the size of the image: remove it and label the image again",
    "missing": "not labeled in the export",
}
LEFT_OUT = ("kept", "additional", "ambiguous", "wrong_size", "turned")


@dataclass
class ImportReport:
    """Result of ``import_labels``.

    Attributes:
        names: kind of ``KINDS`` -> paths of images below their folder, or names in the export, with a remark.
        without_area: number of annotations that are no masks or polygons, and were left out.
    """

    names: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    without_area: int = 0

    @property
    def is_complete(self) -> bool:
        """True if all that was exported is in the label files."""
        return not any(self.names[kind] for kind in LEFT_OUT) and not self.without_area

    def lines(self) -> list[str]:
        """Return one line for each kind that occurs."""
        lines = [f"{len(names):5d} {KINDS[kind]}: {first_names(names)}" for kind, names in self.names.items() if names]
        if self.without_area:
            lines.append(f"{self.without_area:5d} annotations left out, no masks or polygons")
        return lines


def images_below(folder: str) -> InputImages:
    """Find the images below a folder; their paths below it do not change when others are added."""
    return dataclasses.replace(find_images(folder), top=os.path.abspath(folder))


def import_labels(
    export: str | Path,
    images: InputImages,
    classes: LabelClasses,
    output: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    replace: bool = False,
    copies: Mapping[str, str] | None = None,
    gone: Sequence[str] = (),
) -> ImportReport:
    """Write ``output/labels/NAME.png`` for each image that an export labels, a data set and a list for training.

    Nothing is written before all of the export is read.

    Args:
        export, mapping: as of ``read_export``.
        replace: replace label files that differ.
        copies: path of an image below its folder -> file that was labeled in its place; its EXIF orientation counts.
        gone: paths of images that were below the folder, whose labels no other image gets.

    Raises:
        UserError: as ``read_export``; the export labels none of the images; ``output`` has other classes.
    """
    _check_classes(output, classes)
    files = [os.path.abspath(image.record["file_name"]) for image in images]
    paths = [Path(os.path.relpath(file, images.top)).as_posix() for file in files]
    check_names(paths, files)
    report, encoded = ImportReport(), dict[int, np.ndarray]()
    names, count = ImageNames([*paths, *gone]), 0
    used: dict[int, tuple[tuple[bool, int], str]] = {}  # of each encoded image, distance and name in the export
    for exported in read_export(export, classes.by_name(), mapping):
        count += 1
        matches = names.find(exported.name)
        if len(matches) != 1 or matches[0] >= len(paths):
            report.names["ambiguous" if len(matches) > 1 else "additional"].append(exported.name)
            continue
        index = matches[0]
        path, sizes = paths[index], _sizes_of(files[index])
        size = exported.size or sizes[0]
        if size not in sizes:
            remark = f"{exported.name} ({size[1]}x{size[0]}, not {sizes[0][1]}x{sizes[0][0]})"
            report.names["wrong_size"].append(remark)
            continue
        orientation = exif_orientation((copies or {}).get(path, files[index]))
        if orientation != 1 and sizes[0] == sizes[-1]:  # tools show it turned, and the size does not tell
            report.names["turned"].append(f"{path} ({orientation})")
            continue
        if bare(exported.name) != bare(path):
            report.names["renamed"].append(f"{exported.name} -> {path}")
        report.without_area += exported.without_area
        label = exported.paint(size)
        if (label == IGNORE).all():
            report.names["empty"].append(path)
            continue
        far = distance(exported.name, path)
        if index in encoded and far != used[index][0]:  # the farther name is that of an image which was removed
            farther = max(used[index], (far, exported.name))[1]
            report.names["additional"].append(farther)
            if farther == exported.name:
                continue
        elif index in encoded:
            report.names["repeated"].append(path)
        encoded[index], used[index] = cv2.imencode(".png", label)[1], (far, exported.name)
    if not encoded:
        raise _no_labels(export, images, report, count)
    report.names["missing"] = [path for index, path in enumerate(paths) if index not in encoded]
    labeled = [index for index, path in enumerate(paths) if index in encoded or _label_file(output, path).is_file()]
    content = data_set(output, images.top, paths, [paths[index] for index in labeled], classes)
    for index, png in sorted(encoded.items()):
        kind = _write_label(_label_file(output, paths[index]), png, replace)
        report.names[kind].append(paths[index])
    write_classes(output, classes.classes, np.array(classes.ids, np.uint8))
    in_lists = names_in_lists(files)
    write_names(output / LIST, [in_lists[index] for index in labeled])
    file = output / DATA_SET
    if file.is_file() and not file.read_text(encoding="utf-8").startswith(HEADER) and not replace:
        report.names["kept"].append(DATA_SET)
    else:
        with atomic_write(file, "w") as opened:
            opened.write(data_set_text(content))
    return report


def _no_labels(export: str | Path, images: InputImages, report: ImportReport, count: int) -> UserError:
    if not count:
        return UserError("has no labels", key=export, hint="annotate and submit images; predictions are no labels")
    reasons = "; ".join(line.strip() for line in report.lines())
    message = f"has labels of none of the {len(images)} images of {images.place} ({reasons})"
    return UserError(message, key=export, hint="export masks or polygons of these images")


def _check_classes(output: Path, classes: LabelClasses) -> None:
    """
    Raises:
        UserError: an earlier import to ``output`` has other classes or ids.
    """
    file = output / CLASSES
    if file.is_file():
        earlier = classes_of_json(str(file), file.read_text(encoding="utf-8")).by_name()
        if earlier != classes.by_name():
            message = f"it has labels of other classes or ids ({', '.join(earlier)})"
            raise UserError(message, key="--output", value=str(output), hint="choose another folder")


def check_names(paths: Sequence[str], files: Sequence[str]) -> None:
    """
    Args:
        paths, files: of the images, below their common folder and absolute.

    Raises:
        UserError: two images would have the same label file, or are the same file; a name is no printable UTF-8.
    """
    known: dict[str, str] = {}
    for path, file in zip(paths, files, strict=True):
        if UNWRITABLE.search(path):
            message = "has a control character in its name, or bytes that are not UTF-8"
            raise UserError(message, key=repr(path), hint="rename it")
        if (other := known.setdefault(bare(path), path)) != path:
            raise UserError(f"differs from {other} only in its suffix", key=path, hint="rename one of them")
        if (other := known.setdefault(os.path.realpath(file), path)) != path:
            raise UserError(f"is the same file as {other}", key=path, hint="remove the link")


def _label_file(output: Path, path: str) -> Path:
    return output / LABELS / f"{bare(path)}.png"


def _sizes_of(file: str) -> list[Size]:
    """Return (H, W) of an image as stored, and as turned by its EXIF orientation, which tools show."""
    size = stored_size(file)
    if size is None:
        raise UserError("is damaged, or no image", key=file, hint="remove it from the images")
    return [size, size[::-1]] if exif_orientation(file) in SIDEWAYS else [size]


def _write_label(file: Path, png: np.ndarray, replace: bool) -> str:
    """Write a label file, unless another exists, and return its kind in the report."""
    if file.exists():
        earlier, label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED), cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
        if earlier is not None and label is not None and np.array_equal(earlier, label):
            return "unchanged"
        if not replace:
            return "kept"
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as opened:
        opened.write(png.tobytes())
    return "written"


def data_set(
    output: Path, top: str, paths: Sequence[str], labeled: Sequence[str], classes: LabelClasses
) -> dict[str, Any]:
    """Return a custom data set: one split for the images of each depth of folders, "train" if it is one.

    Args:
        top: common folder of the images. paths, labeled: below it, of all images and of those with a label.

    Raises:
        UserError: the path of a folder would be read as a pattern.
    """
    output = output.resolve()
    root = os.path.commonpath([os.path.realpath(top), output])
    places = [Path(os.path.relpath(folder, root)).as_posix() for folder in (os.path.realpath(top), output / LABELS)]
    if any(re.search(r"[*{}]", place) for place in places):
        raise UserError("a folder has one of * { } in its name", key="--output", value=str(output), hint="rename it")
    splits: dict[str, dict[str, Any]] = {}
    depths = sorted({path.count("/") for path in paths})
    for depth in depths:
        pattern = "".join(f"{{folder{level}}}/" for level in range(depth)) + "{stem}"
        suffixes = sorted({PurePosixPath(path).suffix.lower() for path in paths if path.count("/") == depth})
        images = [f"{places[0]}/{pattern}{suffix}".removeprefix("./") for suffix in suffixes]
        split: dict[str, Any] = {"unlabeled": images}
        if any(path.count("/") == depth for path in labeled):
            split |= {"images": images, "labels": f"{places[1]}/{pattern}.png"}
        splits["train" if len(depths) == 1 else f"train_{depth}"] = split
    rows = list(zip(classes.ids, classes.classes.names, classes.classes.colors, strict=True))
    return {
        "name": re.sub(r"\W|^(?![A-Za-z])", "_", f"own_{output.name}", flags=re.ASCII),
        "root": os.path.relpath(root, output),
        "splits": splits,
        "classes": [{"name": name, "color": list(color)} for _, name, color in rows],
        "train_ids": {value: name for value, name, _ in rows},
        "ignore_ids": [IGNORE],
    }


def data_set_text(content: dict[str, Any]) -> str:
    """Return the YAML of a data set, which begins with ``HEADER``."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": 1000}
    return HEADER + yaml.dump(content, Dumper=_PlainDumper, **options)


class _PlainDumper(yaml.SafeDumper):
    """Writes repeated lists in full, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
