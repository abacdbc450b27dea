"""Pure pixel work: label, heat and mask overlays and region borders.

Pictures are (H, W, 3) uint8, RGB; labels and masks have their size or get it.
"""

from __future__ import annotations

import cv2
import matplotlib
import numpy as np

from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.visualization.sizes import resized

KEPT = (46, 204, 113)  # what a query may attend to
REMOVED = (231, 76, 60)  # what is taken away from it; wrong pixels
BORDER = (255, 235, 59)
TRANSFERABILITY_MAP = "viridis"
ATTENTION_MAP = "inferno"


def label_overlay(picture: np.ndarray, labels: np.ndarray, classes: ClassList, strength: float = 0.7) -> np.ndarray:
    """labels: (H, W) train ids, in the colours of their classes; ignored pixels become black."""
    return _mix(picture, classes.palette()[resized(labels, picture.shape[:2])], strength)


def heat_overlay(picture: np.ndarray, values: np.ndarray, colour_map: str, strength: float = 0.72) -> np.ndarray:
    """values: (H, W) in [0, 1], in the colours of a Matplotlib colour map over the grey picture."""
    colours = (matplotlib.colormaps[colour_map](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    indices = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    return _mix(grey(picture), colours[indices], strength)


def mask_overlay(picture: np.ndarray, mask: np.ndarray, removed: np.ndarray | None = None) -> np.ndarray:
    """mask: (H, W) bool, drawn in ``KEPT``; removed: likewise in ``REMOVED``; the rest of the picture is dimmed."""
    mask = resized(mask, picture.shape[:2])
    colours = np.zeros_like(picture)
    colours[mask] = KEPT
    if removed is not None:
        colours[removed] = REMOVED
    result = _mix(grey(picture), colours, 0.55)
    dimmed = _mix(grey(picture), np.zeros_like(picture), 0.45)
    inside = mask if removed is None else np.logical_or(mask, removed)
    result[~inside] = dimmed[~inside]
    return outlined(result, inside.astype(np.uint8), (255, 255, 255))


def removed_overlay(picture: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """removed: (H, W) bool, drawn in ``REMOVED``; the rest of the picture stays as it is."""
    colours = np.broadcast_to(np.array(REMOVED, np.uint8), picture.shape)
    result = picture.copy()
    result[removed] = _mix(grey(picture), colours, 0.6)[removed]
    return outlined(result, removed.astype(np.uint8), (255, 255, 255))


def error_overlay(picture: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Wrong pixels in ``REMOVED``, right ones grey, unlabelled ones black."""
    prediction, truth = (resized(labels, picture.shape[:2]) for labels in (prediction, truth))
    result = _mix(grey(picture), np.full_like(picture, 255), 0.25)
    colours = np.broadcast_to(np.array(REMOVED, np.uint8), picture.shape)
    wrong = wrong_pixels(prediction, truth)
    result[wrong] = _mix(grey(picture), colours, 0.8)[wrong]
    result[truth == IGNORE] = 0
    return result


def wrong_pixels(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W) bool: labelled pixels whose prediction is another class."""
    return (prediction != truth) & (truth != IGNORE)


def outlined(picture: np.ndarray, index: np.ndarray, colour: tuple[int, int, int] = BORDER) -> np.ndarray:
    """Draw the borders between the regions of ``index`` (H, W), 1 pixel wide per 400 pixels of the longer side."""
    borders = np.zeros(index.shape, np.uint8)
    borders[:, 1:][index[:, 1:] != index[:, :-1]] = 1
    borders[1:][index[1:] != index[:-1]] = 1
    width = max(1, round(max(index.shape) / 400))
    result = picture.copy()
    result[cv2.dilate(borders, np.ones((width, width), np.uint8)) > 0] = colour
    return result


def grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _mix(a: np.ndarray, b: np.ndarray, share_of_b: float) -> np.ndarray:
    return cv2.addWeighted(a, 1 - share_of_b, np.ascontiguousarray(b), share_of_b, 0)
