"""GTAV (Richter et al., 2016, "Playing for Data"): label ids of Cityscapes, splits in ``split.mat``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scipy.io import loadmat

from tmt_d2.data.datasets import cityscapes
from tmt_d2.data.datasets.label_spaces import LabelSpace
from tmt_d2.data.datasets.layouts import Layout
from tmt_d2.data.reader import DataError, MissingDataError

GTAV = LabelSpace.of("GTAV", cityscapes.IDS, range(35))


def _members(folder: Path, split: str) -> frozenset[str] | Callable[[str], bool]:
    if split == "all":
        return lambda stem: True
    path = folder / "split.mat"
    if not path.is_file():
        raise MissingDataError(
            "does not exist, and says which frames are in which split",
            key=path,
            hint="get it from the data set's page (read_mapping.zip), or train on all frames with gtav_sem_seg_all",
        )
    key = {"train": "trainIds", "val": "valIds", "test": "testIds"}[split]
    try:
        numbers = loadmat(path)[key]
    except Exception as error:  # SciPy raises many kinds for a damaged file
        raise DataError(f"has no readable {key} ({type(error).__name__})", key=path) from error
    return frozenset(f"{int(number):05d}" for number in numbers.ravel())


LAYOUT = Layout(
    title="GTAV",
    folder="gta5",
    images=("images/{stem}.png",),
    labels=("labels/{stem}.png",),
    splits={"train": ("", 12403), "val": ("", 6382), "test": ("", 6181), "all": ("", 24966)},
    members=_members,
    # 15188 and 17705: image and label disagree; 20801 to 20860 are blank.
    bad=frozenset(f"{number:05d}" for number in (15188, 17705, *range(20801, 20861))),
)
