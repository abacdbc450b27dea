"""A pinhole camera over a flat street, and a canvas that keeps colour, label and depth together.

World coordinates are metres: x to the right of the camera, y up from the ground, z ahead of the camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

OVERSAMPLING = (
    2  # pictures are painted this much larger, then averaged: soft edges in the image, hard ones in the label
)
NEAREST = 1.0  # metres; nothing is painted closer to the camera than this
FARTHEST = 100.0
_SUBPIXEL_BITS = 4
_SUBPIXELS = 1 << _SUBPIXEL_BITS
_CIRCLE = [(math.cos(turn * math.pi / 10), math.sin(turn * math.pi / 10)) for turn in range(20)]

Colour = tuple[float, float, float]  # RGB, 0-255
Point = tuple[float, float, float]  # x, y, z in metres


@dataclass(frozen=True)
class Camera:
    """Attributes: size (height, width), focal length and vanishing point in canvas pixels; camera height in metres."""

    size: tuple[int, int]
    height: float
    focal: float
    vanishing_x: float
    horizon: float

    def project(self, point: Point) -> tuple[float, float]:
        """A world point -> its pixel (x, y); a point closer than ``NEAREST`` is moved there."""
        x, y, z = point
        scale = self.focal / max(z, NEAREST)
        return self.vanishing_x + scale * x, self.horizon + scale * (self.height - y)

    def metres(self, pixels: float, z: float) -> float:
        """How many metres at depth ``z`` cover ``pixels`` pixels of the finished picture."""
        return pixels * OVERSAMPLING * z / self.focal


class Canvas:
    """What has been painted so far.

    ``colour`` (H, W, 3) uint8 RGB, ``label`` (H, W) uint8 train ids, ``depth`` (H, W) float32 metres.
    Painting is opaque, so paint far things first. ``label=None`` paints a detail (a window, a lane marking)
    on a thing that is labelled already; ``colour=None`` labels what can be seen through (a spoked wheel).
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        height, width = camera.size
        self.colour = np.zeros((height, width, 3), np.uint8)
        self.label = np.zeros((height, width), np.uint8)
        below = np.maximum(np.arange(height, dtype=np.float32) - camera.horizon, 1e-3)
        depth = np.minimum(camera.focal * camera.height / below, FARTHEST).astype(np.float32)
        self.depth = np.repeat(depth[:, None], width, axis=1)

    def fill(
        self, points: Sequence[Point], colour: Colour | None, label: int | None = None, ground: bool = False
    ) -> None:
        """Paint a polygon of world points; ``ground`` keeps the depth of the ground under it."""
        pixels = [self.camera.project(point) for point in points]  # for so few points faster than NumPy
        height, width = self.camera.size
        xs, ys = zip(*pixels)
        if max(xs) < 0 or max(ys) < 0 or min(xs) >= width or min(ys) >= height:
            return
        polygon = [np.array([(round(x * _SUBPIXELS), round(y * _SUBPIXELS)) for x, y in pixels], np.int32)]
        if colour is not None:
            cv2.fillPoly(self.colour, polygon, _clipped(colour), cv2.LINE_8, _SUBPIXEL_BITS)
        if label is not None:
            cv2.fillPoly(self.label, polygon, (label,), cv2.LINE_8, _SUBPIXEL_BITS)
            if not ground:
                depth = sum(z for _, _, z in points) / len(points)
                cv2.fillPoly(self.depth, polygon, (depth,), cv2.LINE_8, _SUBPIXEL_BITS)

    def disc(
        self,
        centre: Point,
        radius: tuple[float, float],
        colour: Colour | None,
        label: int | None = None,
        side: bool = False,
    ) -> None:
        """Paint an upright ellipse with radii (horizontal, vertical), facing the camera or (``side``) the street."""
        x, y, z = centre
        along_x, along_z = (0.0, radius[0]) if side else (radius[0], 0.0)
        self.fill([(x + along_x * cos, y + radius[1] * sin, z + along_z * cos) for cos, sin in _CIRCLE], colour, label)

    def bar(self, start: Point, end: Point, width: float, colour: Colour | None, label: int | None = None) -> None:
        """Paint a straight bar, ``width`` metres thick, between two points of the same depth."""
        (x0, y0, z), (x1, y1, _) = start, end
        length = max(math.hypot(x1 - x0, y1 - y0), 1e-6)
        dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        corners = [(x0 + dx, y0 + dy, z), (x1 + dx, y1 + dy, z), (x1 - dx, y1 - dy, z), (x0 - dx, y0 - dy, z)]
        self.fill(corners, colour, label)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> image (h, w, 3) float32 RGB 0-255, label (h, w) uint8, depth (h, w) float32, at the asked size."""
        height, width = (side // OVERSAMPLING for side in self.camera.size)
        image = cv2.resize(self.colour, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        step = slice(OVERSAMPLING // 2, None, OVERSAMPLING)
        return image, self.label[step, step].copy(), self.depth[step, step].copy()


def shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return red * factor, green * factor, blue * factor


def _clipped(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (int(min(max(value, 0.0), 255.0)) for value in colour)
    return red, green, blue
