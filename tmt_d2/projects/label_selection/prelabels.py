"""Pre-labels: what a model predicts on pictures, as annotators correct it: a label file each, and one COCO file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from tmt_d2.data.datasets.label_spaces import IGNORE, LabelSpace
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.reader import read_image_of, read_pair
from tmt_d2.errors import UserError
from tmt_d2.inference.folder import png_path, write_png
from tmt_d2.inference.predictor import Predictor
from tmt_d2.projects.label_selection.pool import Pool
from tmt_d2.utils.files import read_json, remove_temporaries, write_json

FOLDER, COCO = "prelabels", "prelabels.json"
BEGUN = "prelabels.begun.json"  # what was asked, as long as not all of it is there
MASKS, POLYGONS = SEGMENTATIONS = ("masks", "polygons")
TOLERANCE = 1.0  # pixels by which a polygon may leave its outline: each corner is one that a person has to move


def check_free(output: Path) -> None:
    """
    Raises:
        UserError: there are pre-labels, which may have been corrected since, and not of a run that was killed.
    """
    was_killed = (output / BEGUN).is_file()
    for path in [output / COCO] if was_killed else [output / FOLDER, output / COCO]:
        if path.exists():
            raise UserError(f"{path} is there, and may have been corrected: move it, or choose another --output")


def begin(output: Path, asked: Mapping[str, Any]) -> None:
    """Say in ``output`` which pre-labels there are to be, or find that a run that was killed began with the same.

    asked: what they depend on, by names for messages; JSON gives it back as it is.

    Raises:
        UserError: as ``check_free``, or that run was asked for others: they would be mixed.
    """
    check_free(output)
    folder, path = output / FOLDER, output / BEGUN
    if folder.exists():
        before = read_json(path, remedy="choose another --output")
        for key, value in asked.items():
            if before.get(key) != value:
                remedy = "ask for the same, move it, or choose another --output"
                raise UserError(f"{folder} was begun with other {key}: {remedy}")
    write_json(path, asked)
    remove_temporaries(folder)


def write_prelabels(
    output: Path,
    pool: Pool,
    indices: Sequence[int],
    predictor: Predictor,
    *,
    confidence: float = 0.0,
    segmentation: str = MASKS,
) -> None:
    """``output/prelabels/NAME.png`` of each picture, 8-bit ids of the class list, then ``output/prelabels.json``.

    A label file that is there stays as it is, and the JSON file says the same.

    Args:
        indices: pictures of the pool. confidence: pixels whose prediction is less confident are 255.
        segmentation: as of ``mask_annotations``.
    """
    classes = predictor.classes
    own = LabelSpace("the model's class list", {i: i for i in range(len(classes))}, frozenset([IGNORE]), classes)
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image_id, index in enumerate(tqdm(indices, unit="picture", desc=FOLDER), 1):
        name, file = pool.names[index], pool.files[index]
        path = png_path(output / FOLDER, name)
        if path.is_file():
            pixels, labels = read_pair({"file_name": file, LABEL: str(path)}, own, predictor.image_format)
            sure = predictor(pixels, predictor.image_format).confidence().numpy()
        else:
            pixels = read_image_of({"file_name": file}, predictor.image_format)
            prediction = predictor(pixels, predictor.image_format)
            sure = prediction.confidence().numpy()
            labels = np.where(sure >= confidence, prediction.labels.numpy(), np.uint8(IGNORE))
            write_png(path, labels)
        suffix = Path(file).suffix
        height, width = labels.shape
        file_name = name.removesuffix(suffix) + suffix
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for annotation in mask_annotations(labels, sure, segmentation):
            found.append({"id": len(found) + 1, "image_id": image_id, **annotation})
    categories = [{"id": train_id + 1, "name": name} for train_id, name in enumerate(classes.names)]
    write_json(output / COCO, {"images": images, "categories": categories, "annotations": found})
    (output / BEGUN).unlink(missing_ok=True)


def mask_annotations(labels: np.ndarray, confidence: np.ndarray, segmentation: str = MASKS) -> list[dict[str, Any]]:
    """COCO annotations, without ids, of the connected masks (8 neighbours) of each class, the largest first.

    category_id is the class's id + 1: COCO counts from 1. score: mean confidence.

    Args:
        labels: (H, W) uint8, 255 belongs to no mask. confidence: (H, W) float.
        segmentation: "masks", run-length encoded and exact; or "polygons", outlines within ``TOLERANCE``. They have no
            holes. A class in a hole comes later, and so on top: the order is that of the covered areas. A mask around
            pixels of 255 has several polygons, which leave these out.
    """
    found = sorted(_annotations(labels, confidence, segmentation), key=lambda each: -each[0])
    return [annotation for _, annotation in found]


def _annotations(labels: np.ndarray, confidence: np.ndarray, segmentation: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of covered pixels, annotation."""
    for train_id in np.unique(labels[labels != IGNORE]).tolist():
        of_class = (labels == train_id).astype(np.uint8)
        count, components, stats, _ = cv2.connectedComponentsWithStats(of_class, connectivity=8)
        sums = np.bincount(components.ravel(), confidence.ravel(), count)
        for index in range(1, count):  # 0 is the rest
            x, y, width, height, area = stats[index].tolist()
            mask = np.zeros(labels.shape, np.uint8, order="F")
            box = slice(y, y + height), slice(x, x + width)
            mask[box] = components[box] == index
            covered, polygons = area, list[list[int]]()
            if segmentation == POLYGONS:
                covered, polygons = _outlines(mask[box], labels[box] == IGNORE, x, y)
            yield (
                covered,
                {
                    "category_id": train_id + 1,
                    "segmentation": polygons or _run_lengths(mask),
                    "bbox": [x, y, width, height],
                    "area": area,
                    "iscrowd": int(segmentation == MASKS),  # what tells readers that run lengths follow
                    "score": round(float(sums[index]) / area, 4),
                },
            )


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(mask)
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode("ascii")}


def _outlines(mask: np.ndarray, unsure: np.ndarray, x: int, y: int) -> tuple[int, list[list[int]]]:
    """Outline a mask, cut into parts where an outline would cover unsure pixels.

    Args:
        mask: (h, w) uint8, connected. unsure: (h, w) bool, none of them in the mask.
        x, y: of the left top pixel.

    Returns:
        How many pixels are covered, and x, y, x, y, ... of each part along the edges of the pixels, not through their
        centers as OpenCV has it.
    """
    # In the mask at twice its size, the first of a pixel's two columns lies at its left edge, the second at its right.
    double = mask.repeat(2, 0).repeat(2, 1)
    (contour,), _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = cv2.drawContours(double, [contour], -1, 1, cv2.FILLED)[::2, ::2]
    covered_unsure = np.flatnonzero((filled.astype(bool) & unsure).any(0))
    if len(covered_unsure):
        covered, polygons = 0, list[list[int]]()
        cut = int(covered_unsure[len(covered_unsure) // 2])  # an unsure pixel in the first column cannot be enclosed
        for start, stop in ((0, cut), (cut, mask.shape[1])):
            count, parts, stats, _ = cv2.connectedComponentsWithStats(
                np.ascontiguousarray(mask[:, start:stop]), connectivity=8
            )
            for index in range(1, count):
                left, top, width, height, _ = stats[index].tolist()
                inside = slice(top, top + height), slice(left, left + width)
                part = (parts[inside] == index).astype(np.uint8)
                more, outlines = _outlines(part, unsure[:, start:stop][inside], x + start + left, y + top)
                covered, polygons = covered + more, polygons + outlines
        return covered, polygons
    exact = (contour + 1) // 2
    corners = cv2.approxPolyDP(exact, TOLERANCE, closed=True)
    if len(corners) < 3:  # so thin that its sides became one
        corners = exact
    return int(filled.sum()), [[int(value) for value in (corners + (x, y)).ravel()]]
