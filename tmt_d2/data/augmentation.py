"""Crop, resize and color augmentation of training images.

The mapper draws crops; ``ssd_colors`` draws from NumPy's global state.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

BRIGHTNESS_DELTA = 32.0  # SSD (Liu et al. 2016), Section 2.2 and its public implementation
CONTRAST_RANGE = (0.5, 1.5)
SATURATION_RANGE = (0.5, 1.5)
HUE_DELTA = 18  # of 180


@dataclass(frozen=True)
class Crop:
    """A rectangle (``top``, ``left``, ``height``, ``width``), in pixels, of the resized image.

    Attributes:
        source: (H, W) of the image on disk.
        resized: (H', W') after resizing.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in continuous source coordinates (pixel i covers [i, i + 1])."""
        step_y, step_x = self.source[0] / self.resized[0], self.source[1] / self.resized[1]
        right, bottom = (self.left + self.width) * step_x, (self.top + self.height) * step_y
        return self.left * step_x, self.top * step_y, min(right, self.source[1]), min(bottom, self.source[0])

    @property
    def reduction(self) -> int:
        """Return 1, 2, 4 or 8: decoded at 1 / reduction of its size, the image is still at least the resized one."""
        shrink = min(self.source[0] / self.resized[0], self.source[1] / self.resized[1])
        return next(factor for factor in (8, 4, 2, 1) if factor <= max(shrink, 1))


def crop_image(image: np.ndarray, crop: Crop, reduction: int = 1) -> np.ndarray:
    """Return the crop of a (H, W, 3) uint8 image, equal within 1/255 to a crop of Pillow's bilinear resize.

    Only pixels under the crop and the filter around it are read.

    Args:
        image: of size ``crop.source``, or decoded at 1 / ``reduction`` of it (rounded up), then less exact.
    """
    left, top, right, bottom = (edge / reduction for edge in crop.box)
    if crop.resized == crop.source:
        return image[int(top) : int(bottom), int(left) : int(right)]
    step_y, step_x = (whole / new / reduction for whole, new in zip(crop.source, crop.resized))
    if max(step_y, step_x) <= 1:  # where nothing shrinks, Pillow's filter is plain interpolation; OpenCV is faster
        to_source = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, to_source, (crop.width, crop.height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    reach_y, reach_x = int(step_y) + 2, int(step_x) + 2  # Pillow's triangle ends one output pixel away
    y0, y1 = max(int(top) - reach_y, 0), min(int(bottom) + reach_y + 1, image.shape[0])
    x0, x1 = max(int(left) - reach_x, 0), min(int(right) + reach_x + 1, image.shape[1])
    part = Image.fromarray(image[y0:y1, x0:x1])
    box = (left - x0, top - y0, right - x0, bottom - y0)
    return np.asarray(part.resize((crop.width, crop.height), Image.Resampling.BILINEAR, box=box))


def crop_label(label: np.ndarray, crop: Crop) -> np.ndarray:
    """Return the crop of a (H, W) label map, equal to a crop of Pillow's nearest resize."""
    step_y, step_x = crop.source[0] / crop.resized[0], crop.source[1] / crop.resized[1]
    rows = ((np.arange(crop.top, crop.top + crop.height) + 0.5) * step_y).astype(np.intp)
    columns = ((np.arange(crop.left, crop.left + crop.width) + 0.5) * step_x).astype(np.intp)
    return label[rows].take(columns, axis=1)


def ssd_colors(image: np.ndarray, rgb: bool) -> np.ndarray:
    """Apply SSD's color jitter: brightness, contrast, saturation and hue, each with probability 1/2.

    The distribution is that of Detectron2's ``ColorAugSSDTransform``. Faster: brightness and contrast are one table
    lookup, saturation and hue share one conversion to HSV. Contrast is first or last with equal probability.

    Args:
        image: (H, W, 3) uint8.
        rgb: channel order, RGB or BGR.
    """
    apply = np.random.rand(4) < 0.5
    ramp = np.arange(256, dtype=np.float32)
    brightness = np.random.uniform(-BRIGHTNESS_DELTA, BRIGHTNESS_DELTA) if apply[0] else 0.0
    contrast = np.random.uniform(*CONTRAST_RANGE) if apply[1] else 1.0
    saturation = np.random.uniform(*SATURATION_RANGE) if apply[2] else 1.0
    hue = np.random.randint(-HUE_DELTA, HUE_DELTA + 1) if apply[3] else 0
    contrast_first = np.random.rand() < 0.5

    brighter = np.clip(ramp + brightness, 0, 255).astype(np.uint8)
    stretched = np.clip(ramp * contrast, 0, 255).astype(np.uint8)
    before = stretched[brighter] if contrast_first else brighter
    if apply[0] or (apply[1] and contrast_first):
        image = cv2.LUT(image, before)
    if apply[2] or apply[3]:
        table = np.empty((1, 256, 3), np.uint8)
        table[0, :, 0] = (ramp + hue) % 180
        table[0, :, 1] = np.clip(ramp * saturation, 0, 255)
        table[0, :, 2] = ramp
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV if rgb else cv2.COLOR_BGR2HSV)
        image = cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB if rgb else cv2.COLOR_HSV2BGR)
    if apply[1] and not contrast_first:
        image = cv2.LUT(image, stretched)
    return image
