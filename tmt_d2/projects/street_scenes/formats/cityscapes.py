"""Cityscapes: folders by city, 8-bit label ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.projects.street_scenes.formats.base import Format, Frame, write_png

_CITIES = {"train": ("aachen", "bremen", "weimar"), "val": ("frankfurt", "munster")}


class Cityscapes(Format):
    folder = "cityscapes"
    labels = CITYSCAPES

    def names(self, train: int, val: int) -> dict[str, list[str]]:
        return {
            split: [_name(split, index) for index in range(count)] for split, count in (("train", train), ("val", val))
        }

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        city = frame.name.split("_")[0]
        write_png(base / "leftImg8bit" / frame.split / city / f"{frame.name}_leftImg8bit.png", image[..., ::-1])
        write_png(base / "gtFine" / frame.split / city / f"{frame.name}_gtFine_labelIds.png", ids)


def _name(split: str, index: int) -> str:
    cities = _CITIES[split]
    return (
        f"{cities[index % len(cities)]}_{index // len(cities):06d}_000019"  # the 20th frame of a sequence is labelled
    )
