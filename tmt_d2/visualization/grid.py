"""Where the positions of a feature level lie in a picture: exact, without the padding.

The network sees an image of size ``image`` at the top left of a padded ``padded`` one; a level has ``level`` positions
over the padded image. Pictures have any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tmt_d2.visualization.sizes import Size


@dataclass(frozen=True)
class Grid:
    """One level over one image."""

    level: Size
    padded: Size
    image: Size

    @property
    def stride(self) -> int:
        return round(self.padded[0] / self.level[0])

    @property
    def valid(self) -> Size:
        """Positions that see at least one pixel that is not padding."""
        height, width = (math.ceil(i * n / p) for i, n, p in zip(self.image, self.level, self.padded))
        return height, width

    def crop(self, maps: np.ndarray) -> np.ndarray:
        """(..., *level) -> (..., *valid)"""
        height, width = self.valid
        return maps[..., :height, :width]

    def to_picture(self, values: np.ndarray, size: Size, smooth: bool = False) -> np.ndarray:
        """Values of the valid positions -> the pixels of a picture of the image.

        Args:
            values: (*valid) of any dtype.
            size: of the picture.
            smooth: interpolate linearly between the centres of the positions (float32); otherwise every pixel gets the
                value of the position that it lies in.
        """
        if values.shape != self.valid:
            raise ValueError(f"values have shape {values.shape}, the grid has {self.valid} positions")
        rows, columns = (self._coordinates(axis, size[axis]) for axis in (0, 1))
        if not smooth:
            return values[rows.astype(int)[:, None], columns.astype(int)]
        return _linear(_linear(values.astype(np.float32), rows).T, columns).T

    def _coordinates(self, axis: int, length: int) -> np.ndarray:
        """Where the pixels' centres lie on the level; position i covers [i, i + 1)."""
        in_image = (np.arange(length) + 0.5) * self.image[axis] / length
        return in_image * self.level[axis] / self.padded[axis]


def _linear(values: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Interpolate the rows of ``values``, whose centres are at i + 0.5; constant beyond the first and last centre."""
    at = np.clip(coordinates - 0.5, 0, len(values) - 1)
    below = at.astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    weight = (at - below).astype(np.float32)[:, None]
    return values[below] * (1 - weight) + values[above] * weight
