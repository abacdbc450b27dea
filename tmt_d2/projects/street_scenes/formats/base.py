"""What all on-disk formats have in common: folder, frames of each split, and the way from train ids to their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from PIL import Image

from tmt_d2.data.datasets.label_spaces import IGNORE, PALETTE, LabelSpace


@dataclass(frozen=True)
class Frame:
    """Attributes: split ("train" or "val"); index within it, from 0; the data set's own name for the frame."""

    split: str
    index: int
    name: str


class Format(ABC):
    """Writes the files of one data set under ``folder``, which lies in the root of all data sets."""

    folder: ClassVar[str]
    labels: ClassVar[LabelSpace]

    @abstractmethod
    def names(self, train: int, val: int) -> dict[str, list[str]]:
        """The data set's own frame names by split."""

    @abstractmethod
    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        """Write image (H, W, 3) uint8 RGB and ids (H, W) uint8, the data set's own label ids, below ``base``."""

    def finish(self, base: Path, frames: Sequence[Frame]) -> None:  # noqa: B027  most formats need nothing
        """Write what belongs to the data set as a whole."""

    def frames(self, train: int, val: int) -> list[Frame]:
        return [
            Frame(split, i, name) for split, names in self.names(train, val).items() for i, name in enumerate(names)
        ]

    def own_ids(self) -> np.ndarray:
        """(256,) uint8: train id -> the smallest id of this data set that maps to it; likewise for ignored pixels."""
        table = np.full(256, min(self.labels.ignored), np.uint8)
        for train_id in set(self.labels.train_ids.values()):
            table[train_id] = min(own for own, to in self.labels.train_ids.items() if to == train_id)
        table[IGNORE] = min(self.labels.ignored)
        return table

    def palette(self) -> list[int]:
        """R, G, B of each id for a palette PNG: here the colour of its class, ignored ids black."""
        colours = np.zeros((256, 3), np.uint8)
        for own, train_id in self.labels.train_ids.items():
            colours[own] = PALETTE[train_id]
        return [int(value) for value in colours.ravel()]


def write_png(path: Path, pixels: np.ndarray) -> None:
    """pixels: (H, W), or (H, W, 3) in BGR order; uint8 or uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", pixels)[1]
    path.write_bytes(encoded.tobytes())


def write_palette_png(path: Path, ids: np.ndarray, palette: list[int]) -> None:
    """ids (H, W) uint8, kept as they are: the palette is only for viewers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("L")
    image.putpalette(palette)
    image.save(path)


def write_jpeg(path: Path, image: np.ndarray, exif_orientation: int | None = None) -> None:
    """image (H, W, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if exif_orientation is not None:
        exif[0x0112] = exif_orientation
    Image.fromarray(image).save(path, quality=92, exif=exif)
