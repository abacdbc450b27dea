"""Sizes of pictures: (H, W, 3) uint8, or (H, W) of labels and masks."""

from __future__ import annotations

import cv2
import numpy as np

LONGEST = 2048  # larger images are shown, and segmented, at this length of the longer side
ENLARGED = 800  # smaller ones are enlarged by a whole number to at least this length before lines are drawn into them

Size = tuple[int, int]  # height, width


def resized(picture: np.ndarray, size: Size) -> np.ndarray:
    """(H, W[, 3]) -> (*size[, 3]); labels and masks (two dimensions) keep their values."""
    if picture.shape[:2] == size:
        return picture
    if picture.dtype == bool:
        return resized(picture.view(np.uint8), size).view(bool)
    if picture.ndim == 2:
        return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    larger = size[0] > picture.shape[0]
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)


def size_within(size: Size, longest: int = LONGEST) -> Size:
    """``size`` itself, or its like with ``longest`` as the longer side."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shrink(picture: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """The picture itself, or smaller, with ``longest`` as the longer side."""
    return resized(picture, size_within(picture.shape[:2], longest))


def enlarge(picture: np.ndarray) -> np.ndarray:
    """Small pictures enlarged, so that lines drawn into them are thin."""
    height, width = picture.shape[:2]
    factor = -(-ENLARGED // max(height, width))
    return resized(picture, (height * factor, width * factor))
