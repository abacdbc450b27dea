"""Overlays of labels, heat maps, masks and region borders on an image.

Images are (H, W, 3) uint8, RGB; labels and masks (H, W) are resized to the image where they differ.
"""

from __future__ import annotations

import cv2
import matplotlib
import numpy as np

from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.visualization.sizes import resized

KEPT = (46, 204, 113)  # positions that a query may attend to
REMOVED = (231, 76, 60)  # positions that it may not attend to; wrong pixels
BORDER = (255, 235, 59)
WHITE = (255, 255, 255)
TRANSFERABILITY_MAP = "viridis"
ATTENTION_MAP = "inferno"


def label_overlay(image: np.ndarray, labels: np.ndarray, classes: ClassList, strength: float = 0.7) -> np.ndarray:
    """Draw train ids in the colors of their classes; ignored pixels are black."""
    return _mix(image, classes.palette()[resized(labels, image.shape[:2])], strength)


def heat_overlay(image: np.ndarray, values: np.ndarray, color_map: str, strength: float = 0.72) -> np.ndarray:
    """Draw values (H, W) in [0, 1] in a Matplotlib color map over the gray image."""
    colors = (matplotlib.colormaps[color_map](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    indices = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    return _mix(gray(image), colors[indices], strength)


def mask_overlay(image: np.ndarray, mask: np.ndarray, removed: np.ndarray | None = None) -> np.ndarray:
    """Draw the bool ``mask`` in ``KEPT`` and ``removed`` in ``REMOVED``, outlined; the rest of the image is dimmed."""
    mask = resized(mask, image.shape[:2])
    inside = mask if removed is None else mask | removed
    colors = np.zeros_like(image)
    colors[mask] = KEPT
    if removed is not None:
        colors[removed] = REMOVED
    result = _mix(gray(image), np.zeros_like(image), 0.45)
    result[inside] = _mix(gray(image), colors, 0.55)[inside]
    return outlined(result, inside, WHITE)


def removed_overlay(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Draw the bool mask ``removed`` in ``REMOVED``, outlined."""
    result = image.copy()
    result[removed] = _mix(gray(image), np.full_like(image, REMOVED), 0.6)[removed]
    return outlined(result, removed, WHITE)


def error_overlay(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Draw wrong pixels in ``REMOVED``, right ones gray and unlabeled ones black."""
    prediction, truth = (resized(labels, image.shape[:2]) for labels in (prediction, truth))
    result = _mix(gray(image), np.full_like(image, 255), 0.25)
    wrong = wrong_pixels(prediction, truth)
    result[wrong] = _mix(gray(image), np.full_like(image, REMOVED), 0.8)[wrong]
    result[truth == IGNORE] = 0
    return result


def wrong_pixels(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W) bool: labeled pixels whose prediction is another class."""
    return (prediction != truth) & (truth != IGNORE)


def outlined(image: np.ndarray, regions: np.ndarray, color: tuple[int, int, int] = BORDER) -> np.ndarray:
    """Draw the borders between regions (H, W) of equal values, 1 pixel wide per 400 pixels of the longer side."""
    borders = np.zeros(regions.shape, np.uint8)
    borders[:, 1:][regions[:, 1:] != regions[:, :-1]] = 1
    borders[1:][regions[1:] != regions[:-1]] = 1
    width = max(1, round(max(regions.shape) / 400))
    result = image.copy()
    result[cv2.dilate(borders, np.ones((width, width), np.uint8)) > 0] = color
    return result


def gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _mix(a: np.ndarray, b: np.ndarray, share_of_b: float) -> np.ndarray:
    return cv2.addWeighted(a, 1 - share_of_b, np.ascontiguousarray(b), share_of_b, 0)
