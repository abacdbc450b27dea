"""Pre-labels in formats that annotation tools import. COCO is written by ``label_selection/prelabels.py``.

Sources: docs.cvat.ai/docs/dataset_management/formats/format-smask; labelstud.io/guide/predictions.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from tmt_d2.data.class_lists import BLACK, ClassList, with_colors
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.projects.annotation.brush import encode_brush
from tmt_d2.projects.annotation.formats import CVAT_MAP, CVAT_MASKS
from tmt_d2.projects.annotation.labels import BACKGROUND
from tmt_d2.projects.annotation.matching import bare
from tmt_d2.utils.files import atomic_write

LOCAL_FILES = "/data/local-files/?d="  # Label Studio's reference to a file on its own disk
FROM, TO = "label", "image"  # names of the tags in ``labeling_config``

Labels = Iterable[tuple[str, np.ndarray]]  # path of an image below its folder, (H, W) uint8 class indices or IGNORE


def write_cvat_masks(path: Path, classes: ClassList, labels: Labels) -> None:
    """Write a zip archive for CVAT's import of "Segmentation mask 1.1", atomically. Ignored pixels are ``background``.

    Classes that are black, or share a color, get other colors.
    """
    if len({BLACK, *classes.colors}) <= len(classes):
        classes = with_colors(classes.names, {})
    palette = classes.palette()
    lines = [f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in zip(classes.names, classes.colors)]
    names = []
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, label in labels:
            names.append(bare(name))
            png = cv2.imencode(".png", cv2.cvtColor(palette[label], cv2.COLOR_RGB2BGR))[1]
            archive.writestr(f"{CVAT_MASKS}/{names[-1]}.png", png.tobytes())
        archive.writestr(CVAT_MAP, "\n".join([f"{BACKGROUND}:0,0,0::", *lines, ""]))
        archive.writestr("ImageSets/Segmentation/default.txt", "\n".join([*names, ""]))


def write_label_studio(path: Path, classes: ClassList, labels: Labels) -> None:
    """Write tasks with predictions for Label Studio, one brush region for each class, atomically."""
    with atomic_write(path, "w") as file:
        file.write("[")
        for number, (name, label) in enumerate(labels):
            regions = [
                brush_region(label, index, classes.names[index]) for index in np.unique(label[label != IGNORE]).tolist()
            ]
            prediction = {"model_version": "tmt_d2", "result": regions}
            task = {"data": {TO: LOCAL_FILES + quote(name)}, "predictions": [prediction]}
            file.write(("," if number else "") + "\n" + json.dumps(task))
        file.write("\n]\n")


def brush_region(label: np.ndarray, index: int, name: str) -> dict[str, Any]:
    """Return Label Studio's region of class ``index`` in ``label``, (H, W) uint8, where it has at least one pixel."""
    height, width = label.shape
    return {
        "id": f"class{index}",
        "type": "brushlabels",
        "from_name": FROM,
        "to_name": TO,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(label == index), "brushlabels": [name]},
    }


def labeling_config(classes: ClassList) -> str:
    """Return the labeling interface of a Label Studio project for the tasks of ``write_label_studio``."""
    rows = [
        f"    <Label value={quoteattr(name)} background={quoteattr('#' + bytes(color).hex())}/>"
        for name, color in zip(classes.names, classes.colors)
    ]
    image, brush = f'  <Image name="{TO}" value="${TO}"/>', f'  <BrushLabels name="{FROM}" toName="{TO}">'
    return "\n".join(["<View>", image, brush, *rows, "  </BrushLabels>", "</View>", ""])
