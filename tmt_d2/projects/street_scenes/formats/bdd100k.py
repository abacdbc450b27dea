"""BDD100K, 10k semantic segmentation, current layout: JPEG images, PNG masks of train ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tmt_d2.data.datasets.bdd100k import BDD100K
from tmt_d2.projects.street_scenes.formats.base import Format, Frame, write_jpeg, write_png


class Bdd100k(Format):
    folder = "bdd100k"
    labels = BDD100K

    def names(self, train: int, val: int) -> dict[str, list[str]]:
        return {
            "train": [f"0{index:07x}-{index * 2654435761 % 2**32:08x}" for index in range(train)],
            "val": [f"7{index:07x}-{index * 2246822519 % 2**32:08x}" for index in range(val)],
        }

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        write_jpeg(base / "images" / "10k" / frame.split / f"{frame.name}.jpg", image)
        write_png(base / "labels" / "sem_seg" / "masks" / frame.split / f"{frame.name}.png", ids)
