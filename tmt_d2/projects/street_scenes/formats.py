"""On-disk formats of the five data sets."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from tmt_d2.data.datasets import bdd100k, cityscapes, gtav, mapillary, synthia
from tmt_d2.data.datasets.label_spaces import IGNORE, PALETTE, LabelSpace


@dataclass(frozen=True)
class Frame:
    """Attributes: split ("train" or "val"); index within it, from 0; the data set's own name for the frame."""

    split: str
    index: int
    name: str


class Format(ABC):
    """Writes the files of one data set to ``folder`` below the root of all data sets."""

    folder: ClassVar[str]
    labels: ClassVar[LabelSpace]

    @abstractmethod
    def names(self, split: str, count: int, before: int) -> list[str]:
        """The data set's own names of the frames of a split. before: number of frames in earlier splits."""

    @abstractmethod
    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        """Write image (H, W, 3) uint8 RGB and ids (H, W) uint8, the data set's own label ids, below ``base``."""

    def finish(self, base: Path, frames: Sequence[Frame]) -> None:  # noqa: B027  most formats need nothing
        """Write the files that describe the data set as a whole."""

    def frames(self, train: int, val: int) -> list[Frame]:
        names = {"train": self.names("train", train, 0), "val": self.names("val", val, train)}
        return [Frame(split, i, name) for split in names for i, name in enumerate(names[split])]

    def own_ids(self) -> np.ndarray:
        """(256,) uint8: train id -> the smallest id of this data set that maps to it."""
        table = np.full(256, min(self.labels.ignored), np.uint8)
        for own, train_id in sorted(self.labels.train_ids.items(), reverse=True):
            table[train_id] = own
        table[IGNORE] = min(self.labels.ignored)
        return table


class Cityscapes(Format):
    """Folders by city, 8-bit label ids."""

    folder, labels = "cityscapes", cityscapes.CITYSCAPES
    cities = {"train": ("aachen", "bremen", "weimar"), "val": ("frankfurt", "munster")}

    def names(self, split: str, count: int, before: int) -> list[str]:
        cities = self.cities[split]  # the 20th frame of each sequence is labeled
        return [f"{cities[index % len(cities)]}_{index // len(cities):06d}_000019" for index in range(count)]

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        city = frame.name.split("_")[0]
        write_png(base / "leftImg8bit" / frame.split / city / f"{frame.name}_leftImg8bit.png", image[..., ::-1])
        write_png(base / "gtFine" / frame.split / city / f"{frame.name}_gtFine_labelIds.png", ids)


class Bdd100k(Format):
    """10k semantic segmentation in the current layout: JPEG images, PNG masks of train ids."""

    folder, labels = "bdd100k", bdd100k.BDD100K

    def names(self, split: str, count: int, before: int) -> list[str]:
        digit, factor = {"train": (0, 2654435761), "val": (7, 2246822519)}[split]
        return [f"{digit}{index:07x}-{index * factor % 2**32:08x}" for index in range(count)]

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        write_jpeg(base / "images" / "10k" / frame.split / f"{frame.name}.jpg", image)
        write_png(base / "labels" / "sem_seg" / "masks" / frame.split / f"{frame.name}.png", ids)


class Mapillary(Format):
    """Vistas v1.2: JPEG images of many sizes, palette PNG labels. The reader recognizes v1.2 by its palette."""

    folder, labels = "mapillary_vistas", mapillary.MAPILLARY_A  # the ids have the same meaning under mapping B
    splits = {"train": ("training", "tr"), "val": ("validation", "va")}

    def names(self, split: str, count: int, before: int) -> list[str]:
        return [f"{self.splits[split][1]}{index:020d}" for index in range(count)]

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        folder = base / self.splits[frame.split][0]
        with_exif = frame.index < 2  # a few images carry an orientation tag, as phones write it
        write_jpeg(folder / "images" / f"{frame.name}.jpg", image, 1 if with_exif else None)
        write_palette_png(folder / "labels" / f"{frame.name}.png", ids, np.array(mapillary.PALETTE))


class Gtav(Format):
    """Playing for Data: numbered frames, palette PNG labels of Cityscapes label ids, splits in a MATLAB file."""

    folder, labels = "gta5", gtav.GTAV

    def names(self, split: str, count: int, before: int) -> list[str]:
        numbers = (f"{number:05d}" for number in itertools.count(1))
        good = (name for name in numbers if name not in gtav.LAYOUT.bad)  # readers leave those out
        return list(itertools.islice(good, before, before + count))

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        palette = np.zeros((256, 3), np.uint8)
        for own, train_id in self.labels.train_ids.items():
            palette[own] = PALETTE[train_id]
        write_png(base / "images" / f"{frame.name}.png", image[..., ::-1])
        write_palette_png(base / "labels" / f"{frame.name}.png", ids, palette)

    def finish(self, base: Path, frames: Sequence[Frame]) -> None:
        splits = {}
        for split in ("train", "val", "test"):
            numbers = [int(frame.name) for frame in frames if frame.split == split]
            splits[f"{split}Ids"] = np.array(numbers, np.uint16).reshape(-1, 1)
        savemat(base / "split.mat", splits)


class Synthia(Format):
    """SYNTHIA-RAND-CITYSCAPES: numbered frames, 16-bit three-channel labels with the class in the red channel.

    It has no official split: ``val`` is every frame whose number ends in 9, ``train`` all others.
    """

    folder, labels = "synthia", synthia.SYNTHIA

    def names(self, split: str, count: int, before: int) -> list[str]:
        numbers = itertools.count(9, 10) if split == "val" else (n for n in itertools.count() if n % 10 != 9)
        return [f"{number:07d}" for number in itertools.islice(numbers, count)]

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        folder, instances = base / "RAND_CITYSCAPES", np.zeros_like(ids)
        write_png(folder / "RGB" / f"{frame.name}.png", image[..., ::-1])
        blue_green_red = np.stack([instances, instances, ids], axis=-1).astype(np.uint16)
        write_png(folder / "GT" / "LABELS" / f"{frame.name}.png", blue_green_red)


FORMATS: dict[str, Format] = {
    "cityscapes": Cityscapes(), "bdd100k": Bdd100k(), "mapillary": Mapillary(), "gtav": Gtav(), "synthia": Synthia(),
}  # fmt: skip


def write_png(path: Path, pixels: np.ndarray) -> None:
    """pixels: (H, W), or (H, W, 3) in BGR order; uint8 or uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def write_palette_png(path: Path, ids: np.ndarray, palette: np.ndarray) -> None:
    """ids: (H, W) uint8. palette: (n, 3) RGB, for viewers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("L")
    image.putpalette([int(value) for value in palette.ravel()])
    image.save(path)


def write_jpeg(path: Path, image: np.ndarray, exif_orientation: int | None = None) -> None:
    """image: (H, W, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if exif_orientation is not None:
        exif[0x0112] = exif_orientation
    Image.fromarray(image).save(path, quality=92, exif=exif)
