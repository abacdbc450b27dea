"""Resizing of images (H, W, 3) uint8, and of labels and masks (H, W)."""

from __future__ import annotations

import cv2
import numpy as np

LONGEST = 2048  # larger images are shown, and segmented, at this length of the longer side
ENLARGED = 800  # smaller images are enlarged by an integer factor to at least this length before lines are drawn

Size = tuple[int, int]  # height, width


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W[, 3]) -> (*size[, 3]); by nearest neighbor for labels and masks (two dimensions)."""
    if image.shape[:2] == size:
        return image
    if image.dtype == bool:
        return resized(image.view(np.uint8), size).view(bool)
    if image.ndim == 2:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    larger = size[0] > image.shape[0]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)


def size_within(size: Size, longest: int = LONGEST) -> Size:
    """Scale ``size`` down so that its longer side is at most ``longest``."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shrink(image: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """Resize an image whose longer side exceeds ``longest``."""
    return resized(image, size_within(image.shape[:2], longest))


def enlarge(image: np.ndarray) -> np.ndarray:
    """Enlarge a small image, so that lines drawn into it are thin."""
    height, width = image.shape[:2]
    factor = -(-ENLARGED // max(height, width))
    return resized(image, (height * factor, width * factor))
