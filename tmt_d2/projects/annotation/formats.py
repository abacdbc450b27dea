"""Readers of the formats that annotation tools export.

Sources: docs.cvat.ai/docs/dataset_management/formats (Segmentation mask, COCO, Cityscapes) and Datumaro's exporters, by
which CVAT writes them; cocodataset.org/#format-data; labelstud.io/guide/export and /guide/task_format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pycocotools import mask as coco_mask

from tmt_d2.data.class_lists import RGB
from tmt_d2.data.datasets.label_spaces import IGNORE, OUTSIDE
from tmt_d2.data.image_files import IMAGES
from tmt_d2.data.reader import ids_of_colors, open_image, stored_size
from tmt_d2.errors import UserError
from tmt_d2.inference.folder import CLASSES
from tmt_d2.projects.annotation.archive import Archive, open_export
from tmt_d2.projects.annotation.brush import decode_brush
from tmt_d2.projects.annotation.labels import BACKGROUND, LabelNames, classes_of_json

CVAT_MAP, CVAT_MASKS = "labelmap.txt", "SegmentationClass"
CITY_MAP, CITY_MASKS, CITY_IDS, CITY_COLORS = "label_colors.txt", "gtFine", "_labelIds.png", "_color.png"
CVAT_LINE = re.compile(r"(?P<name>.+?):(?P<r>\d+),(?P<g>\d+),(?P<b>\d+):[^:]*:[^:]*")
CITY_LINE = re.compile(r"(?P<r>\d+)\s+(?P<g>\d+)\s+(?P<b>\d+)\s+(?P<name>.+)")
NO_LABEL = "(no label)"  # in label files of ids, where the label ``background`` is one like others
LABEL_KEYS = ("brushlabels", "polygonlabels", "labels")
SUPPORTED = "CVAT's Segmentation mask 1.1, COCO 1.0 and Cityscapes, Label Studio's JSON and COCO, PNG with classes.json"
Size = tuple[int, int]
Decode = Callable[[Size], np.ndarray]  # (H, W) -> (H, W) bool


@dataclass(frozen=True)
class Exported:
    """Labels of one image of an export, which are not read yet.

    Attributes:
        name: path of the image, with or without its suffix.
        size: (H, W) of the image; None where the export does not give it.
        paint: (H, W) -> (H, W) uint8 class ids, or ``LabelNames.background`` where there is no label. All pixels of an
            image without any label are ``IGNORE``. Raises UserError.
        without_area: number of annotations that are no masks or polygons, such as boxes.
    """

    name: str
    size: Size | None
    paint: Callable[[Size], np.ndarray]
    without_area: int = 0


def read_export(
    path: str | Path, classes: Mapping[str, int], mapping: Mapping[str, str] | None = None
) -> Iterator[Exported]:
    """Yield the labels of each image of an export, whose format is recognized by its files.

    Args:
        path: a zip archive, a folder or a JSON file.
        classes: name -> id in the result. mapping: as of ``LabelNames``.

    Raises:
        UserError: the export is damaged or in no known format, or uses labels that are no classes.
    """
    labels = LabelNames(classes, mapping)
    with open_export(path) as archive:
        files = {PurePosixPath(name).name for name in archive.names}
        folders = {part for name in archive.names for part in PurePosixPath(name).parts[:-1]}
        if CVAT_MASKS in folders:
            yield from _cvat_masks(archive, labels)
        elif CITY_MASKS in folders:
            yield from _cityscapes(archive, labels)
        elif CLASSES in files:
            yield from _id_files(archive, labels)
        else:
            yield from _json_files(archive, labels)


@contextmanager
def _expected_content(where: str) -> Iterator[None]:
    """Report a missing key or a value of another type in the content of a file.

    Raises:
        UserError: about ``where``.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        message = f"is damaged ({type(error).__name__}: {' '.join(str(error).split())})"
        raise UserError(message, key=where, hint="export again") from error


def _cvat_masks(archive: Archive, labels: LabelNames) -> Iterator[Exported]:
    colors = _label_map(archive, CVAT_MAP, CVAT_LINE)
    for file in _png_files(archive, CVAT_MASKS):
        yield _png(archive, labels, file, _below(file, CVAT_MASKS).removesuffix(".png"), colors)


def _cityscapes(archive: Archive, labels: LabelNames) -> Iterator[Exported]:
    """Yield the images of a Cityscapes export, by their colors if there are any.

    Ids are positions in the label map, whose first label is the background. Some versions of Datumaro do not write it.
    """
    entries = _label_map(archive, CITY_MAP, CITY_LINE)
    files = _png_files(archive, CITY_MASKS)
    kind = CITY_COLORS if any(file.endswith(CITY_COLORS) for file in files) else CITY_IDS
    if kind == CITY_IDS:
        names = [name.casefold() for name, _ in entries]
        if BACKGROUND not in names:
            entries.insert(0, (BACKGROUND, None))
        elif names[0] != BACKGROUND:
            message = f"{CITY_MAP} does not begin with {BACKGROUND}, so that the ids are ambiguous"
            raise UserError(message, key=archive.path, hint=f"add the files *{CITY_COLORS}")
    for file in files:
        if file.endswith(kind):
            split, _, name = _below(file, CITY_MASKS).removesuffix(kind).partition("/")
            yield _png(archive, labels, file, (name or split).removesuffix(f"_{CITY_MASKS}"), entries, kind == CITY_IDS)


def _id_files(archive: Archive, labels: LabelNames) -> Iterator[Exported]:
    file = archive.select(lambda name: PurePosixPath(name).name == CLASSES)[0]
    known = classes_of_json(archive.where(file), archive.text(file))
    names: dict[int, str] = {value: name for name, value in known.by_name().items()} | {IGNORE: NO_LABEL}
    files = _png_files(archive, "labels") or _png_files(archive, "")
    for file in files:
        name = _below(file, "labels").removesuffix(".png")
        yield _png(archive, labels, file, name, [(names.get(value, ""), None) for value in range(256)], True, NO_LABEL)


def _png_files(archive: Archive, folder: str) -> list[str]:
    """Return the PNG files in ``folder``, wherever it lies."""
    return archive.select(lambda name: name.endswith(".png") and f"/{folder}/" in f"//{name}")


def _below(file: str, folder: str) -> str:
    """Return the path of a file in ``folder``; all of it if it lies elsewhere."""
    return f"/{file}".partition(f"/{folder}/")[2] or file


def _label_map(archive: Archive, name: str, line_pattern: re.Pattern[str]) -> list[tuple[str, RGB | None]]:
    """Return names and colors in the lines of a label map.

    Raises:
        UserError: there is none, or a line is wrong.
    """
    files = archive.select(lambda file: PurePosixPath(file).name == name)
    if not files:
        raise UserError(f"has no {name}, which names its labels", key=archive.path, hint="export again")
    entries: list[tuple[str, RGB | None]] = []
    for number, line in enumerate(archive.text(files[0]).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = line_pattern.fullmatch(line.strip())
        color = [int(match[channel]) for channel in "rgb"] if match else [256]
        if max(color) > 255 or len(entries) == OUTSIDE:
            raise UserError(f"line {number} is {line!r}, no label with its color", key=archive.where(files[0]))
        entries.append((match["name"], (color[0], color[1], color[2])))  # type: ignore[index]
    return entries


def _png(
    archive: Archive,
    labels: LabelNames,
    file: str,
    name: str,
    entries: Sequence[tuple[str, RGB | None]],
    as_ids: bool = False,
    no_label: str = BACKGROUND,
) -> Exported:
    """Return the labels in a PNG file: values of gray pixels are positions in ``entries``, colors those of its entries.

    Args:
        as_ids: the values of a palette file, too, are positions.
        no_label: as of ``LabelNames.table``.
    """
    data, where = archive.read(file), archive.where(file)
    size = stored_size(data)
    if size is None:
        raise UserError("is no PNG file, or too large", key=where, hint="export again")
    return Exported(name, size, lambda _: _paint_png(where, data, entries, as_ids, labels, no_label))


def _paint_png(
    where: str,
    data: bytes,
    entries: Sequence[tuple[str, RGB | None]],
    as_ids: bool,
    labels: LabelNames,
    no_label: str,
) -> np.ndarray:
    image = open_image(where, data)
    if image.mode in ("P", "RGBA") and not as_ids:
        image = image.convert("RGB")
    if image.mode not in ("1", "L", "P") and (image.mode != "RGB" or as_ids):
        hint = "labels are 8-bit gray or palette" if as_ids else "labels are 8-bit gray, palette or RGB"
        raise UserError(f"is a PNG file of mode {image.mode}", key=where, hint=hint)
    pixels = np.asarray(image)
    names = {value: name for value, (name, _) in enumerate(entries) if name}
    if pixels.ndim == 3:
        names.setdefault(IGNORE, BACKGROUND)
        pixels = ids_of_colors(pixels, {(0, 0, 0): IGNORE} | _values_of_colors(where, entries, labels))
    elif not as_ids and names.get(0, "").casefold() != BACKGROUND:
        message = f"its gray values are ambiguous, as {BACKGROUND} is not the first label"
        raise UserError(message, key=where, hint="export masks in colors")
    table = labels.table(names, no_label)
    values = np.unique(pixels).tolist()
    labels.ids((names[value] for value in values if value in names and table[value] < 0), where)
    if undefined := [value for value in values if table[value] < 0]:
        content = "a color" if OUTSIDE in undefined else f"the value {undefined[0]}"
        raise UserError(f"has {content} that its label map lacks", key=where, hint="export again")
    if all(names[value].casefold() == no_label for value in values):
        return np.full(pixels.shape, IGNORE, np.uint8)
    return table.astype(np.uint8)[pixels.astype(np.uint8)]


def _values_of_colors(where: str, entries: Sequence[tuple[str, RGB | None]], labels: LabelNames) -> dict[RGB, int]:
    table = labels.table({value: name for value, (name, _) in enumerate(entries)})
    values: dict[RGB, int] = {}
    for value, (name, color) in enumerate(entries):
        if color is not None and table[values.setdefault(color, value)] != table[value]:
            message = f"labels {entries[values[color]][0]} and {name} have the same color"
            raise UserError(message, key=where, hint="give each label a color of its own")
    return values


def _json_files(archive: Archive, labels: LabelNames) -> Iterator[Exported]:
    found = False
    for file in archive.select(lambda name: name.lower().endswith(".json")):
        where = archive.where(file if file != archive.path.name else "")
        text = archive.text(file)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"is no JSON file ({error})", key=where, hint="export again") from error
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            found = True
            yield from _coco(where, content, labels)
        elif isinstance(content, list) and any("data" in task for task in content if isinstance(task, dict)):
            found = True
            yield from _label_studio(where, content, labels)
    if not found:
        raise UserError("is no export of labels", key=archive.path, hint=f"formats are {SUPPORTED}")


def _coco(where: str, content: dict[str, Any], labels: LabelNames) -> Iterator[Exported]:
    """Yield the images of a COCO file. An annotation with a higher ``z_order`` covers others, then a later one."""
    with _expected_content(where):
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        areas: dict[Any, list[tuple[str, Decode]]] = {image["id"]: [] for image in content["images"]}
        without_area: dict[Any, int] = dict.fromkeys(areas, 0)
        for each in sorted(content["annotations"], key=_z_order):
            if segmentation := each.get("segmentation"):
                decode = _decode_run_lengths if isinstance(segmentation, dict) else _fill_polygons
                areas[each["image_id"]].append((names[each["category_id"]], partial(decode, segmentation)))
            else:
                without_area[each["image_id"]] += 1
        ids = labels.ids((name for of_image in areas.values() for name, _ in of_image), where)
        for image in content["images"]:
            size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
            name = str(image["file_name"]).replace("\\", "/")
            paint = partial(_paint, where, areas[image["id"]], ids, labels.background)
            yield Exported(name, size, paint, without_area[image["id"]])


def _z_order(annotation: dict[str, Any]) -> float:
    attributes = annotation.get("attributes") or {}
    return float(annotation.get("z_order", attributes.get("z_order", 0)))


def _label_studio(where: str, tasks: Sequence[dict[str, Any]], labels: LabelNames) -> Iterator[Exported]:
    """Yield every annotation of each task, the one that was changed last at the end. Predictions are no labels."""
    with _expected_content(where):
        for task in tasks:
            name = _image_of_task(task)
            annotations = [each for each in task.get("annotations") or () if not each.get("was_cancelled")]
            for annotation in sorted(annotations, key=lambda each: str(each.get("updated_at") or "")):
                sizes, areas, without_area = set[Size](), list[tuple[str, Decode]](), 0
                for region in annotation["result"]:
                    value = region.get("value", {})
                    label = next((value[key][0] for key in LABEL_KEYS if value.get(key)), None)
                    if label is None or not {"rle", "points"} & value.keys():
                        without_area += "value" in region  # a relation has none
                        continue
                    sizes.add((int(region["original_height"]), int(region["original_width"])))
                    if "rle" in value:
                        areas.append((label, partial(decode_brush, value["rle"])))
                    else:
                        areas.append((label, partial(_fill_percent, value["points"])))
                if len(sizes) > 1:
                    raise UserError(f"the regions of {name} have images of several sizes", key=where)
                ids = labels.ids((label for label, _ in areas), where)
                paint = partial(_paint, where, areas, ids, labels.background)
                yield Exported(name, next(iter(sizes), None), paint, without_area)


def _paint(
    where: str, areas: Sequence[tuple[str, Decode]], ids: Mapping[str, int], background: int, size: Size
) -> np.ndarray:
    """Draw areas one over the other."""
    result = np.full(size, background if areas else IGNORE, np.uint8)
    with _expected_content(where):
        for name, decode in areas:
            result[decode(size)] = ids[name]
    return result


def _decode_run_lengths(segmentation: dict[str, Any], size: Size) -> np.ndarray:
    """Return (H, W) bool of COCO's run lengths, compressed (a text) or not (a list)."""
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"the size of a mask is {segmentation['size']} in an image of {list(size)}")
    counts = segmentation["counts"]
    if not isinstance(counts, list):
        return coco_mask.decode({"size": list(size), "counts": counts.encode()}).astype(bool)
    if sum(counts) != size[0] * size[1]:
        raise ValueError("the run lengths of a mask do not add up to the image")
    return coco_mask.decode(coco_mask.frPyObjects(segmentation, *size)).astype(bool)


def _fill_polygons(polygons: Sequence[Sequence[float]], size: Size) -> np.ndarray:
    """Return (H, W) bool, the union of polygons x, y, x, y, ... in pixels. Lines and points cover no pixel."""
    corners = [np.asarray(polygon, float).reshape(-1, 2) for polygon in polygons]
    for each in corners:
        if not (abs(each) <= 2 * np.array(size[::-1])).all():  # or it is not finite
            raise ValueError("a polygon lies far outside of its image")
    areas = [each.ravel().tolist() for each in corners if len(each) > 2]
    if not areas:
        return np.zeros(size, bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(areas, *size))).astype(bool)


def _fill_percent(points: Sequence[Sequence[float]], size: Size) -> np.ndarray:
    """As ``_fill_polygons`` for one polygon with corners in percent of the image."""
    corners = np.asarray(points, float) * size[::-1] / 100
    return _fill_polygons([corners.ravel().tolist()], size)


def _image_of_task(task: dict[str, Any]) -> str:
    """Return the path in a task's reference to its image: an upload, a local file, or a URL."""
    data = task["data"]
    texts = [data.get("image"), *data.values(), task.get("file_upload")]
    paths = [_path_of(text) for text in texts if isinstance(text, str)]
    return next((path for path in paths if PurePosixPath(path).suffix.lower() in IMAGES), paths[0])


def _path_of(reference: str) -> str:
    if "://" not in reference and not reference.startswith("/data/"):
        return reference.replace("\\", "/")
    parts = urlsplit(reference)
    return parse_qs(parts.query).get("d", [unquote(parts.path)])[0].replace("\\", "/")
