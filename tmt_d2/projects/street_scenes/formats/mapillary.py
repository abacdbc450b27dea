"""Mapillary Vistas v1.2: JPEG images of many sizes, palette PNG labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tmt_d2.data.datasets.mapillary import MAPILLARY_A, PALETTE
from tmt_d2.projects.street_scenes.formats.base import Format, Frame, write_jpeg, write_palette_png

_FOLDERS = {"train": "training", "val": "validation"}
_WITH_EXIF = 2  # so many images of a split carry an orientation tag, as phones write it


class Mapillary(Format):
    folder = "mapillary_vistas"
    labels = MAPILLARY_A  # its ids mean the same under mapping B

    def names(self, train: int, val: int) -> dict[str, list[str]]:
        return {
            "train": [f"tr{index:020d}" for index in range(train)],
            "val": [f"va{index:020d}" for index in range(val)],
        }

    def palette(self) -> list[int]:
        """That of v1.2, by which the reader tells its labels from those of v2.0."""
        return [value for colour in PALETTE for value in colour]

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        folder = base / _FOLDERS[frame.split]
        write_jpeg(folder / "images" / f"{frame.name}.jpg", image, 1 if frame.index < _WITH_EXIF else None)
        write_palette_png(folder / "labels" / f"{frame.name}.png", ids, self.palette())
