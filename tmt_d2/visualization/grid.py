"""Exact places of the positions of a feature level in an image, without the padding.

The network sees an image of ``image_size`` at the top left of a padded one of ``padded_size``; a level has
``level_size`` positions over the padded image. Maps can be drawn into the image at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tmt_d2.visualization.sizes import Size


@dataclass(frozen=True)
class Grid:
    """Positions of one level over one image."""

    level_size: Size
    padded_size: Size
    image_size: Size

    @property
    def stride(self) -> int:
        return round(self.padded_size[0] / self.level_size[0])

    @property
    def valid(self) -> Size:
        """Number of rows and columns that see at least one pixel of the image."""
        sizes = zip(self.image_size, self.level_size, self.padded_size)
        height, width = (math.ceil(image * level / padded) for image, level, padded in sizes)
        return height, width

    def crop(self, maps: np.ndarray) -> np.ndarray:
        """(..., *level_size) -> (..., *valid)"""
        height, width = self.valid
        return maps[..., :height, :width]

    def to_image(self, values: np.ndarray, size: Size, smooth: bool = False) -> np.ndarray:
        """Sample values of the valid positions at the pixels of the image, drawn at ``size``.

        Args:
            values: (*valid) of any dtype.
            smooth: interpolate linearly between the centers of the positions (float32); otherwise each pixel gets the
                value of the position that contains it.
        """
        if values.shape != self.valid:
            raise ValueError(f"values have shape {values.shape}, the grid has {self.valid} positions")
        rows, columns = (self._coordinates(axis, size[axis]) for axis in (0, 1))
        if not smooth:
            return values[rows.astype(int)[:, None], columns.astype(int)]
        return _linear(_linear(values.astype(np.float32), rows).T, columns).T

    def _coordinates(self, axis: int, length: int) -> np.ndarray:
        """Coordinates of the pixel centers on the level, where position i covers [i, i + 1)."""
        in_image = (np.arange(length) + 0.5) * self.image_size[axis] / length
        return in_image * self.level_size[axis] / self.padded_size[axis]


def _linear(values: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Interpolate between rows with centers at i + 0.5; constant beyond the first and the last center."""
    at = np.clip(coordinates - 0.5, 0, len(values) - 1)
    below = at.astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    weight = (at - below).astype(np.float32)[:, None]
    return values[below] * (1 - weight) + values[above] * weight
