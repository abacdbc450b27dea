"""SYNTHIA-RAND-CITYSCAPES: numbered frames, 16-bit three-channel labels with the class in the red channel.

It has no official split; ``val`` is every frame whose number ends in 9, ``train`` the rest.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from tmt_d2.data.datasets.synthia import SYNTHIA
from tmt_d2.projects.street_scenes.formats.base import Format, Frame, write_png


class Synthia(Format):
    folder = "synthia"
    labels = SYNTHIA

    def names(self, train: int, val: int) -> dict[str, list[str]]:
        return {
            "train": [
                f"{number:07d}" for number in itertools.islice((n for n in itertools.count() if n % 10 != 9), train)
            ],
            "val": [f"{number:07d}" for number in range(9, 10 * val, 10)],
        }

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        folder = base / "RAND_CITYSCAPES"
        write_png(folder / "RGB" / f"{frame.name}.png", image[..., ::-1])
        instance = np.zeros_like(ids)
        blue_green_red = np.stack([instance, instance, ids], axis=-1).astype(np.uint16)
        write_png(folder / "GT" / "LABELS" / f"{frame.name}.png", blue_green_red)
