"""Pre-labels in a CVAT task, by the auto-annotation of its command line; the community edition is enough.

    cvat-cli --server-host https://cvat.example.com task auto-annotate 42 --function-file cvat_function.py \\
        -p config=str:mycity/models/01/config.yaml -p weights=str:mycity/models/01/model_final.pth \\
        -p confidence=float:0.5 --allow-unmatched-labels

Labels are matched with those of the task by name. Each connected region of a class becomes a mask, or with
``--conv-mask-to-poly`` polygons within a pixel of the outline. It needs ``pip install -e '.[cvat]'``.
Interface: docs.cvat.ai/docs/api_sdk/sdk/auto-annotation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.errors import UserError
from tmt_d2.inference.predictor import Predictor
from tmt_d2.projects.label_selection.choices import MASKS, POLYGONS
from tmt_d2.projects.label_selection.prelabels import mask_annotations


def create(
    config: str, weights: str, method: str = "", calibration: str = "", confidence: str | float = "0"
) -> DetectionFunction:
    """Load a trained model; the arguments are those of ``-p``.

    Args:
        method, calibration: as in ``tools/predict.py``.
        confidence: in [0, 1]; less confident pixels are in no mask. ``--conf-threshold`` takes precedence.

    Raises:
        FileNotFoundError, UserError: config, checkpoint, calibration or confidence cannot be used.
    """
    least = float(confidence)
    if not 0 <= least <= 1:
        raise UserError("must be a number from 0 to 1", key="confidence", value=confidence)
    predictor = Predictor.from_config(config, weights, method=method)
    if calibration:
        predictor.calibrate(calibration)
    from cvat_sdk import auto_annotation

    return DetectionFunction(predictor, least, auto_annotation)


class DetectionFunction:
    """CVAT's interface of a function that annotates images one by one; ids of labels are class indices."""

    def __init__(self, predictor: Predictor, confidence: float, sdk: Any) -> None:
        self._predictor, self._confidence, self._sdk = predictor, confidence, sdk  # cvat_sdk.auto_annotation
        labels = [sdk.label_spec(name, index, type="mask") for index, name in enumerate(predictor.classes.names)]
        self.spec = sdk.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Return the shapes in an image; ``context`` is CVAT's ``DetectionFunctionContext``."""
        prediction = self._predictor(ImageOps.exif_transpose(image))  # as CVAT shows it
        least = self._confidence if context.conf_threshold is None else context.conf_threshold
        confidences = prediction.confidence().numpy()
        labels = np.where(confidences >= least, prediction.labels.numpy(), np.uint8(IGNORE))
        make = self._sdk.polygon if context.conv_mask_to_poly else self._sdk.mask
        return [make(index, points) for index, points in shapes_of(labels, confidences, context.conv_mask_to_poly)]


def shapes_of(labels: np.ndarray, confidences: np.ndarray, polygons: bool = False) -> Iterator[tuple[int, list[int]]]:
    """Yield class index and points of each connected region, the largest first; of polygons a region may need several.

    Args:
        labels: (H, W) uint8 class indices; pixels of 255 are in no region.
        confidences: (H, W) float.
    """
    for region in mask_annotations(labels, confidences, POLYGONS if polygons else MASKS):
        index = region["category_id"] - 1
        if polygons:
            yield from ((index, polygon) for polygon in region["segmentation"])
        else:
            x, y, width, height = region["bbox"]
            mask = coco_mask.decode(region["segmentation"])[y : y + height, x : x + width]
            yield index, mask_points(mask.astype(bool), x, y)


def mask_points(mask: np.ndarray, x: int, y: int) -> list[int]:
    """Return the points of CVAT's mask shape: run lengths, row by row, and the box with its last column and row.

    ``mask``, (h, w) bool, has its top left pixel at x, y of the image. The first run is of False and may have length 0.
    """
    values = mask.ravel()
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    lengths = np.diff([0, *starts, len(values)]).tolist()
    height, width = mask.shape
    return [*([0] if values[0] else []), *lengths, x, y, x + width - 1, y + height - 1]
