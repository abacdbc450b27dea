"""SYNTHIA-RAND-CITYSCAPES (Ros et al., 2016): the class is the red channel of a 16-bit PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tmt_d2.data.datasets.label_spaces import CLASSES, LabelSpace
from tmt_d2.data.datasets.layouts import Layout
from tmt_d2.data.reader import DataError

IDS = {
    1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 16: 9, 17: 12, 18: 14,
    19: 15, 20: 16, 21: 3,
}  # fmt: skip
ABSENT = (9, 14, 16)

# The two sets of train ids over which results on SYNTHIA are reported.
SYNTHIA_16 = tuple(train_id for train_id in range(19) if train_id not in ABSENT)
SYNTHIA_13 = tuple(train_id for train_id in SYNTHIA_16 if CLASSES[train_id] not in ("wall", "fence", "pole"))

SYNTHIA = LabelSpace.of(
    "SYNTHIA-RAND-CITYSCAPES",
    IDS,
    range(23),
    encoding="synthia",
    never_occurs=ABSENT,
    class_subsets={"16 classes": SYNTHIA_16, "13 classes": SYNTHIA_13},
)


def _members(folder: Path, split: str) -> Callable[[str], bool]:
    """Return a predicate: as there is no official split, frames whose number ends in 9 are for validation."""

    def inside(stem: str) -> bool:
        if not stem.isdecimal():
            raise DataError(f"{stem!r} is no frame number such as 0000009", key=folder)
        return (int(stem) % 10 == 9) == (split == "val")

    return inside


LAYOUT = Layout(
    title="SYNTHIA",
    folder="synthia/RAND_CITYSCAPES",
    images=("RGB/{stem}.png",),
    labels=("GT/LABELS/{stem}.png",),
    splits={"train": ("", 8460), "val": ("", 940)},
    members=_members,
)
