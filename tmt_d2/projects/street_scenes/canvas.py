"""A pinhole camera over a flat street, and a canvas of color, label and depth.

World coordinates are meters: x to the right of the camera, y up from the ground, z ahead of the camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tmt_d2.data.datasets.label_spaces import TRAIN_ID

OVERSAMPLING = 2  # images are painted at this scale and then averaged: soft edges in the image, hard ones in the label
NEAREST = 1.0  # meters; nothing is painted closer to the camera
FARTHEST = 100.0
_SUBPIXEL_BITS = 4
_SUBPIXELS = 1 << _SUBPIXEL_BITS
_CIRCLE = [(math.cos(turn * math.pi / 10), math.sin(turn * math.pi / 10)) for turn in range(20)]

Color = tuple[float, float, float]  # RGB, 0-255
Point = tuple[float, float, float]  # x, y, z in meters


@dataclass(frozen=True)
class Camera:
    """Attributes: size (height, width), focal length and vanishing point in canvas pixels; camera height in meters."""

    size: tuple[int, int]
    height: float
    focal: float
    vanishing_x: float
    horizon: float

    def project(self, point: Point) -> tuple[float, float]:
        """World point -> pixel (x, y); a point closer than ``NEAREST`` is moved there."""
        x, y, z = point
        scale = self.focal / max(z, NEAREST)
        return self.vanishing_x + scale * x, self.horizon + scale * (self.height - y)

    def meters(self, pixels: float, z: float) -> float:
        """Length in meters at depth ``z`` of ``pixels`` pixels of the finished image."""
        return pixels * OVERSAMPLING * z / self.focal


class Canvas:
    """An image in progress. Painting is opaque: paint far things first.

    Shapes take a color, or None for what one can see through (a spoked wheel), and a class name, or None for a detail
    on a labeled thing (a window).

    Attributes:
        color: (H, W, 3) uint8 RGB. label: (H, W) uint8 train ids. depth: (H, W) float32 meters.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        height, width = camera.size
        self.color = np.zeros((height, width, 3), np.uint8)
        self.label = np.zeros((height, width), np.uint8)
        below = np.maximum(np.arange(height, dtype=np.float32) - camera.horizon, 1e-3)
        depth = np.minimum(camera.focal * camera.height / below, FARTHEST).astype(np.float32)
        self.depth = np.repeat(depth[:, None], width, axis=1)

    def fill(
        self, points: Sequence[Point], color: Color | None, label: str | None = None, ground: bool = False
    ) -> None:
        """Paint a polygon of world points; ``ground`` keeps the depth of the ground under it."""
        pixels = [self.camera.project(point) for point in points]  # for so few points faster than NumPy
        height, width = self.camera.size
        xs, ys = zip(*pixels)
        if max(xs) < 0 or max(ys) < 0 or min(xs) >= width or min(ys) >= height:
            return
        polygon = [np.array([(round(x * _SUBPIXELS), round(y * _SUBPIXELS)) for x, y in pixels], np.int32)]
        if color is not None:
            rgb = [int(min(max(value, 0.0), 255.0)) for value in color]
            cv2.fillPoly(self.color, polygon, rgb, cv2.LINE_8, _SUBPIXEL_BITS)
        if label is not None:
            cv2.fillPoly(self.label, polygon, (TRAIN_ID[label],), cv2.LINE_8, _SUBPIXEL_BITS)
            if not ground:
                depth = sum(z for _, _, z in points) / len(points)
                cv2.fillPoly(self.depth, polygon, (depth,), cv2.LINE_8, _SUBPIXEL_BITS)

    def rectangle(
        self, x: tuple[float, float], y: tuple[float, float], z: float, color: Color, label: str | None = None
    ) -> None:
        """Paint an upright rectangle that faces the camera."""
        self.fill([(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)], color, label)

    def disc(
        self,
        center: Point,
        radius: tuple[float, float],
        color: Color | None,
        label: str | None = None,
        side: bool = False,
    ) -> None:
        """Paint an upright ellipse with radii (horizontal, vertical), facing the camera or (``side``) the street."""
        x, y, z = center
        along_x, along_z = (0.0, radius[0]) if side else (radius[0], 0.0)
        self.fill([(x + along_x * cos, y + radius[1] * sin, z + along_z * cos) for cos, sin in _CIRCLE], color, label)

    def bar(self, start: Point, end: Point, width: float, color: Color | None, label: str | None = None) -> None:
        """Paint a straight bar, ``width`` meters thick, between two points of the same depth."""
        (x0, y0, z), (x1, y1, _) = start, end
        length = max(math.hypot(x1 - x0, y1 - y0), 1e-6)
        dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        corners = [(x0 + dx, y0 + dy, z), (x1 + dx, y1 + dy, z), (x1 - dx, y1 - dy, z), (x0 - dx, y0 - dy, z)]
        self.fill(corners, color, label)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image (h, w, 3) float32 RGB 0-255, label (h, w) uint8, depth (h, w) float32 at the final size."""
        height, width = (side // OVERSAMPLING for side in self.camera.size)
        image = cv2.resize(self.color, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        step = slice(OVERSAMPLING // 2, None, OVERSAMPLING)
        return image, self.label[step, step].copy(), self.depth[step, step].copy()


def shade(color: Color, factor: float) -> Color:
    red, green, blue = color
    return red * factor, green * factor, blue * factor
