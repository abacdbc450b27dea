"""GTAV (Playing for Data): numbered frames, palette PNG labels of Cityscapes label ids, the split in a MATLAB file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tmt_d2.data.datasets import gtav
from tmt_d2.projects.street_scenes.formats.base import Format, Frame, write_palette_png, write_png


class Gtav(Format):
    folder = "gta5"
    labels = gtav.GTAV

    def names(self, train: int, val: int) -> dict[str, list[str]]:
        numbers = (f"{number:05d}" for number in itertools.count(1))
        good = (name for name in numbers if name not in gtav.LAYOUT.bad)  # readers leave those out
        return {"train": list(itertools.islice(good, train)), "val": list(itertools.islice(good, val))}

    def write(self, base: Path, frame: Frame, image: np.ndarray, ids: np.ndarray) -> None:
        write_png(base / "images" / f"{frame.name}.png", image[..., ::-1])
        write_palette_png(base / "labels" / f"{frame.name}.png", ids, self.palette())

    def finish(self, base: Path, frames: Sequence[Frame]) -> None:
        base.mkdir(parents=True, exist_ok=True)
        numbers = {
            split: [[int(frame.name)] for frame in frames if frame.split == split] for split in ("train", "val", "test")
        }
        columns = {f"{split}Ids": np.array(ids, np.uint16).reshape(-1, 1) for split, ids in numbers.items()}
        savemat(base / "split.mat", columns)
