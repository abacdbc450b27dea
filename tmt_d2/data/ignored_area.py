"""The part of every unlabeled image that shows no street: the hood of the camera's car, borders of rectification."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.config import CfgNode, configurable

from tmt_d2.data.augmentation import Crop, crop_label
from tmt_d2.data.reader import read_image
from tmt_d2.errors import UserError


class IgnoredArea:
    """Rows at the top and bottom, and the black pixels of a mask, of images of any size."""

    @configurable
    def __init__(self, rows: Sequence[float] = (0.0, 0.0), mask: np.ndarray | None = None) -> None:
        """
        Args:
            rows: shares of the image's height at the top and at the bottom.
            mask: (H, W) bool, True where pixels are ignored; stretched to the size of the image.
        """
        self.rows, self.mask = rows, mask

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        rows, file = cfg.SELF_TRAINING.IGNORED_ROWS, cfg.SELF_TRAINING.IGNORED_MASK
        if sum(rows) >= 1:
            raise UserError("nothing is left of the images", key="SELF_TRAINING.IGNORED_ROWS", value=rows)
        mask = read_image(file).max(-1) == 0 if file else None
        if mask is not None and mask.all():
            message = "every pixel is black: nothing is left of the images"
            raise UserError(message, key="SELF_TRAINING.IGNORED_MASK", value=file, hint="paint the street white")
        return {"rows": rows, "mask": mask}

    def __bool__(self) -> bool:
        return any(self.rows) or self.mask is not None

    def crop(self, crop: Crop) -> np.ndarray:
        """Return (h, w) bool, True where the pixels of a crop are ignored."""
        height, width = crop.source
        mask = np.zeros((1, 1), np.uint8) if self.mask is None else self.mask.astype(np.uint8)
        area = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        area[: round(self.rows[0] * height)] = 1
        area[height - round(self.rows[1] * height) :] = 1
        return crop_label(area, crop).astype(bool)
