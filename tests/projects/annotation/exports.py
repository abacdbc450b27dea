"""Exports as the tools write them, made by hand from arrays of class indices."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

NAMES = ("Road", "sky", "traffic light")
COLORS = ((128, 64, 128), (70, 130, 180), (250, 170, 30))
CLASSES = {"road": 3, "sky": 0, "traffic light": 7}
IDS = np.array([3, 0, 7, *[255] * 253], np.uint8)  # index in NAMES -> id in CLASSES
SIZE = (37, 53)

Content = Mapping[str, bytes | str]


def blobs(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) uint8, indices of NAMES and 255 in patches of 1 to 8 pixels, each of them present."""
    rng = np.random.default_rng(seed)
    small = rng.choice([0, 1, 2, 255], (size[0] // 8 + 1, size[1] // 8 + 1))
    labels = np.kron(small, np.ones((8, 8))).astype(np.uint8)[: size[0], : size[1]]
    dots = rng.random(size) < 0.02
    labels[dots] = rng.choice([0, 1, 2, 255], dots.sum())
    return labels


def png(pixels: np.ndarray, palette: list[int] | None = None) -> bytes:
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def colored(labels: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[:3] = COLORS
    return table[labels]


def write_zip(path: Path, content: Content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, content: Content) -> Path:
    for name, data in content.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def cvat_masks(labels: Mapping[str, np.ndarray]) -> dict[str, bytes | str]:
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(NAMES, COLORS)]
    files: dict[str, bytes | str] = {"labelmap.txt": "\n".join(lines) + "\n"}
    for name, label in labels.items():
        files[f"SegmentationClass/{name}.png"] = png(colored(label))
        files[f"SegmentationObject/{name}.png"] = png(np.full((*label.shape, 3), 9, np.uint8))
    return files


def cityscapes(labels: Mapping[str, np.ndarray], kind: str = "labelIds") -> dict[str, bytes | str]:
    lines = ["0 0 0 background", *(f"{r} {g} {b} {name}" for name, (r, g, b) in zip(NAMES, COLORS))]
    files: dict[str, bytes | str] = {"label_colors.txt": "\n".join(lines)}
    for name, label in labels.items():
        files[f"imgsFine/leftImg8bit/default/{name}_leftImg8bit.png"] = png(np.zeros((*label.shape, 3), np.uint8))
        pixels = colored(label) if kind == "color" else label + np.uint8(1)  # 255 becomes 0
        files[f"gtFine/default/{name}_gtFine_{kind}.png"] = png(pixels)
    return files


def segmentation_of(mask: np.ndarray, compressed: bool = True) -> dict[str, Any]:
    """COCO run lengths of a mask."""
    columns = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns]))).tolist()
    counts = np.diff([0, *edges, columns.size]).tolist()
    if not compressed:
        return {"size": list(mask.shape), "counts": counts}
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def coco(labels: Mapping[str, np.ndarray], first: int = 1, compressed: bool = True) -> dict[str, Any]:
    """first: id of the first category."""
    images, annotations = [], []
    for number, (name, label) in enumerate(labels.items(), 1):
        images.append({"id": number, "file_name": name, "height": label.shape[0], "width": label.shape[1]})
        for index in np.unique(label[label < 255]).tolist():
            segmentation = segmentation_of(label == index, compressed)
            each = {"image_id": number, "category_id": index + first, "segmentation": segmentation, "iscrowd": 1}
            annotations.append({"id": len(annotations) + 1, **each})
    categories = [{"id": index + first, "name": name, "supercategory": ""} for index, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def cvat_coco(labels: Mapping[str, np.ndarray], **options: Any) -> dict[str, bytes | str]:
    return {"annotations/instances_default.json": json.dumps(coco(labels, **options))}


def id_files(labels: Mapping[str, np.ndarray]) -> dict[str, bytes | str]:
    rows = [{"id": 10 * i, "name": name, "color": list(COLORS[i])} for i, name in enumerate(NAMES)]
    files: dict[str, bytes | str] = {"classes.json": json.dumps({"classes": rows})}
    table = np.array([0, 10, 20, *[255] * 253], np.uint8)
    return files | {f"labels/{name}.png": png(table[label]) for name, label in labels.items()}


def region(kind: str, label: str, value: dict[str, Any], size: tuple[int, int] = SIZE) -> dict[str, Any]:
    sizes = {"original_height": size[0], "original_width": size[1], "image_rotation": 0}
    return {"type": kind, "from_name": "l", "to_name": "image", **sizes, "value": {kind: [label], **value}}


def task(image: str, *results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A Label Studio task with one annotation for each list of regions."""
    annotations = [{"id": index, "was_cancelled": False, "result": result} for index, result in enumerate(results)]
    return {"id": 1, "data": {"image": image}, "annotations": annotations, "predictions": [], **more}
