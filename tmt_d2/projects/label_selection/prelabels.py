"""Pre-labels: predictions that annotators correct, as one label file per image and as one COCO file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.reader import read_image_of
from tmt_d2.errors import UserError
from tmt_d2.inference.folder import png_path, write_png
from tmt_d2.inference.predictor import Predictor
from tmt_d2.projects.label_selection.choices import MASKS, POLYGONS
from tmt_d2.projects.label_selection.pool import Pool
from tmt_d2.utils.files import write_json

FOLDER, COCO = "prelabels", "prelabels.json"
DRAFT = ".prelabels.draft"
TOLERANCE = 1.0  # maximum distance in pixels between a polygon and the outline; an annotator moves every corner


def check_no_prelabels(output: Path) -> None:
    """
    Raises:
        UserError: ``output`` has pre-labels; they may have been corrected.
    """
    if (output / FOLDER).exists():
        hint = "move it, or choose another --output"
        raise UserError("it exists and may have been corrected", key=output / FOLDER, hint=hint)


def write_prelabels(
    output: Path,
    pool: Pool,
    indices: Sequence[int],
    predictor: Predictor,
    *,
    confidence: float = 0.0,
    segmentation: str = MASKS,
) -> None:
    """Write ``output/prelabels/NAME.png`` for each image, 8-bit class ids, and ``output/prelabels.json``.

    The folder appears when it is complete.

    Args:
        indices: rows of the pool. confidence: pixels with a less confident prediction are 255.
        segmentation: as for ``mask_annotations``.
    """
    check_no_prelabels(output)
    draft = output / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, index in enumerate(tqdm(indices, unit="image", desc=FOLDER), 1):
        name, file = pool.names[index], pool.files[index]
        prediction = predictor(read_image_of({"file_name": file}, predictor.image_format), predictor.image_format)
        confidences = prediction.confidence().numpy()
        labels = np.where(confidences >= confidence, prediction.labels.numpy(), np.uint8(IGNORE))
        write_png(png_path(draft, name), labels)
        suffix = Path(file).suffix
        height, width = labels.shape
        file_name = name.removesuffix(suffix) + suffix
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for annotation in mask_annotations(labels, confidences, segmentation):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(predictor.classes.names)]
    write_json(output / COCO, {"images": images, "categories": categories, "annotations": annotations})
    os.replace(draft, output / FOLDER)


def mask_annotations(labels: np.ndarray, confidence: np.ndarray, segmentation: str = MASKS) -> list[dict[str, Any]]:
    """Return COCO annotations, without ids, of the connected masks of each class, the largest first.

    ``category_id`` is the class index + 1, as COCO counts from 1; ``score`` is the mean confidence.

    Args:
        labels: (H, W) uint8, 255 belongs to no mask.
        confidence: (H, W) float.
        segmentation: "masks" for exact run lengths, of pixels connected by 8 neighbors. "polygons" for outlines within
            ``TOLERANCE``, of pixels connected by 4 neighbors. Polygons have no holes: they are ordered by the area that
            they enclose, so that a class in a hole is drawn later. A mask around pixels of 255 has several polygons,
            which leave these pixels out.
    """
    by_area = sorted(_annotations(labels, confidence, segmentation), key=lambda each: -each[0])
    return [annotation for _, annotation in by_area]


def _annotations(labels: np.ndarray, confidence: np.ndarray, segmentation: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of enclosed pixels, annotation)."""
    # A ring that is closed only by touching corners could be crossed by another: with 4 neighbors there is none.
    connectivity = 4 if segmentation == POLYGONS else 8
    for class_index in np.unique(labels[labels != IGNORE]).tolist():
        of_class = (labels == class_index).astype(np.uint8)
        count, components, stats, _ = cv2.connectedComponentsWithStats(of_class, connectivity=connectivity)
        sums = np.bincount(components.ravel(), confidence.ravel(), count)
        for index in range(1, count):  # 0 is the background
            x, y, width, height, area = stats[index].tolist()
            mask = np.zeros(labels.shape, np.uint8, order="F")
            box = slice(y, y + height), slice(x, x + width)
            mask[box] = components[box] == index
            annotation = {
                "category_id": class_index + 1,
                "bbox": [x, y, width, height],
                "area": area,
                "iscrowd": int(segmentation == MASKS),  # readers expect run lengths with iscrowd 1
                "score": round(float(sums[index]) / area, 4),
            }
            if segmentation == POLYGONS:
                seams = {0, labels.shape[1]}, {0, labels.shape[0]}
                enclosed, polygons = _outlines(mask[box], labels[box] == IGNORE, (x, y), seams)
                yield enclosed, annotation | {"segmentation": polygons}
            else:
                encoded = coco_mask.encode(mask)
                run_lengths = {"size": list(labels.shape), "counts": encoded["counts"].decode("ascii")}
                yield area, annotation | {"segmentation": run_lengths}


def _outlines(
    mask: np.ndarray, ignored: np.ndarray, place: tuple[int, int], seams: tuple[set[int], set[int]]
) -> tuple[int, list[list[int]]]:
    """Outline a mask. A mask whose outline would cover ignored pixels is cut into parts.

    Args:
        mask: (h, w) uint8, connected.
        ignored: (h, w) bool, none of them in the mask.
        place: x, y of the top left pixel.
        seams: x and y of the image's border and of cuts: outlines along them are exact.

    Returns:
        number of enclosed pixels; x, y, x, y, ... of each part along the edges of the pixels, where OpenCV's contours
        run through their centers.
    """
    # In the mask at twice its size the first of a pixel's two columns lies at its left edge, the second at its right.
    double = mask.repeat(2, 0).repeat(2, 1)
    (contour,), _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = cv2.drawContours(double, [contour], -1, 1, cv2.FILLED)[::2, ::2]
    enclosed = int(filled.sum())
    covered_columns = np.flatnonzero((filled.astype(bool) & ignored).any(0))
    if not len(covered_columns):
        corners = (contour[:, 0] + 1) // 2 + place
        fixed = np.isin(corners[:, 0], list(seams[0])) | np.isin(corners[:, 1], list(seams[1]))
        return enclosed, [_simplify(corners, fixed).ravel().tolist()]
    polygons = list[list[int]]()
    cut = int(covered_columns[len(covered_columns) // 2])  # no pixel in the first column can be enclosed
    seams = seams[0] | {place[0] + cut}, seams[1]
    for start, stop in ((0, cut), (cut, mask.shape[1])):
        half = np.ascontiguousarray(mask[:, start:stop])
        count, parts, stats, _ = cv2.connectedComponentsWithStats(half, connectivity=8)
        for index in range(1, count):
            left, top, width, height, _ = stats[index].tolist()
            box = slice(top, top + height), slice(left, left + width)
            part = (parts[box] == index).astype(np.uint8)
            corner = place[0] + start + left, place[1] + top
            polygons += _outlines(part, ignored[:, start:stop][box], corner, seams)[1]
    return enclosed, polygons


def _simplify(corners: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Drop corners of a closed outline, (N, 2) int, within ``TOLERANCE`` of the line between those that stay.

    This is the algorithm of Douglas and Peucker. That of OpenCV drops more corners than the tolerance allows, and would
    not keep the ``fixed`` ones, (N,) bool.
    """
    if len(corners) == 4:
        return corners  # a rectangle
    kept, points = fixed.copy(), corners @ (1, 1j)  # x + iy
    if kept.sum() < 2:
        first = int(fixed.argmax())
        kept[[first, abs(points - points[first]).argmax()]] = True
    start = int(kept.argmax())
    corners, kept, points = (np.roll(each, -start, 0) for each in (corners, kept, points))
    points = np.append(points, points[0])
    chords = list(pairwise([*np.flatnonzero(kept).tolist(), len(corners)]))
    while chords:
        start, stop = chords.pop()
        if stop == start + 1:
            continue
        chord, offsets = points[stop] - points[start], points[start + 1 : stop] - points[start]
        distances = abs((offsets * chord.conjugate()).imag) / abs(chord) if chord else abs(offsets)
        middle = start + 1 + int(distances.argmax())
        if distances[middle - start - 1] > TOLERANCE:
            kept[middle] = True
            chords += [(start, middle), (middle, stop)]
    return corners[kept] if kept.sum() > 2 else corners  # a mask so thin that its sides became one
