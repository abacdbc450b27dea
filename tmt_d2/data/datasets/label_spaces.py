"""The 19 Cityscapes train classes, and for each of the five data sets the one table from its own ids to them.

Training, evaluation and the embedded renderer all read these tables; nothing else in the project knows a class name, a
colour or a data set's id, but the YAML file of a user's own data set (``custom``). Sources of the tables: the data
sets' own documentation and the label definitions of ``cityscapesScripts`` (see docs/data.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tmt_d2.data.class_lists import RGB, ClassList, coloured

IGNORE = 255  # train id of pixels that neither train nor count
OUTSIDE = 254  # lookup value of an id that the data set does not define: a wrong file, reported as an error

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # RGB, in the order of CLASSES  # fmt: skip

MAPILLARY_PALETTE = (
    (165, 42, 42), (0, 192, 0), (196, 196, 196), (190, 153, 153), (180, 165, 180), (90, 120, 150), (102, 102, 156),
    (128, 64, 255), (140, 140, 200), (170, 170, 170), (250, 170, 160), (96, 96, 96), (230, 150, 140), (128, 64, 128),
    (110, 110, 110), (244, 35, 232), (150, 100, 100), (70, 70, 70), (150, 120, 90), (220, 20, 60), (255, 0, 0),
    (255, 0, 100), (255, 0, 200), (200, 128, 128), (255, 255, 255), (64, 170, 64), (230, 160, 50), (70, 130, 180),
    (190, 255, 255), (152, 251, 152), (107, 142, 35), (0, 170, 30), (255, 255, 128), (250, 0, 30), (100, 140, 180),
    (220, 220, 220), (220, 128, 128), (222, 40, 40), (100, 170, 30), (40, 40, 40), (33, 33, 33), (100, 128, 160),
    (142, 0, 0), (70, 100, 150), (210, 170, 100), (153, 153, 153), (128, 128, 128), (0, 0, 80), (250, 170, 30),
    (192, 192, 192), (220, 220, 0), (140, 140, 20), (119, 11, 32), (150, 0, 255), (0, 60, 100), (0, 0, 142),
    (0, 0, 90), (0, 0, 230), (0, 80, 100), (128, 64, 64), (0, 0, 110), (0, 0, 70), (0, 0, 192), (32, 32, 32),
    (120, 10, 10), (0, 0, 0),
)  # RGB, in the order of the ids of Mapillary Vistas v1.2: what its label files hold  # fmt: skip
MAPILLARY_2_COLOUR = (250, 170, 31)  # of id 2 in label files of v2.0, whose ids mean other things

TRAIN_ID = {name: index for index, name in enumerate(CLASSES)}
CITYSCAPES_CLASSES = ClassList(CLASSES, PALETTE)


def class_list(names: Sequence[str], given: Mapping[str, RGB]) -> ClassList:
    """Classes in the colours that are given; then names of the 19 have theirs, unless it is taken, and others
    generated ones."""
    familiar = {name: PALETTE[TRAIN_ID[name]] for name in names if name in TRAIN_ID and name not in given}
    taken = set(given.values())
    return coloured(names, {**given, **{name: color for name, color in familiar.items() if color not in taken}})


@dataclass(frozen=True)
class LabelSpace:
    """How the pixel values of one data set's label files become train ids.

    Attributes:
        name: for messages, e.g. ``"Mapillary Vistas v1.2, mapping A"``.
        train_ids: id on disk -> train id, for the ids that have one.
        ignored: the other ids that the data set defines; they become ``IGNORE``.
        classes: what the train ids mean; all five data sets share ``CITYSCAPES_CLASSES``.
        encoding: ``"index"``, a PNG, grey or palette, whose stored value is the id; ``"synthia"``, a 16-bit PNG with
            three channels, the first (red) of which is the id.
        never_occurs: train ids that no file of the data set holds, even where ``train_ids`` leads to them.
        colors: in label files that are RGB, color -> train id or ``IGNORE``.
    """

    name: str
    train_ids: Mapping[int, int]
    ignored: frozenset[int]
    classes: ClassList = CITYSCAPES_CLASSES
    encoding: Literal["index", "synthia"] = "index"
    never_occurs: tuple[int, ...] = ()
    colors: Mapping[RGB, int] = field(default_factory=dict)

    def lookup(self) -> np.ndarray:
        """(256,) uint8: id on disk -> train id, ``IGNORE``, or ``OUTSIDE`` for an undefined id."""
        table = np.full(256, OUTSIDE, np.uint8)
        table[sorted(self.ignored)] = IGNORE
        for value, train_id in self.train_ids.items():
            table[value] = train_id
        return table


def _space(name: str, train_ids: Mapping[int, int], defined: Iterable[int]) -> LabelSpace:
    return LabelSpace(name, train_ids, frozenset(defined) - frozenset(train_ids))


_CITYSCAPES_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip
_IDENTITY = {index: index for index in range(19)}

_MAPILLARY_A = {
    2: 1, 3: 4, 6: 3, 13: 0, 15: 1, 17: 2, 19: 11, 20: 12, 21: 12, 22: 12, 24: 0, 27: 10, 29: 9, 30: 8, 41: 0, 45: 5,
    47: 5, 48: 6, 50: 7, 52: 18, 54: 15, 55: 13, 57: 17, 58: 16, 61: 14,
}  # fmt: skip
_MAPILLARY_B = {
    **{value: train_id for value, train_id in _MAPILLARY_A.items() if value != 41},
    7: 0, 8: 0, 9: 1, 10: 0, 11: 1, 14: 0, 23: 0, 44: 5, 46: 7, 49: 7,
}  # fmt: skip
_SYNTHIA_IDS = {
    1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 16: 9, 17: 12, 18: 14,
    19: 15, 20: 16, 21: 3,
}  # fmt: skip

CITYSCAPES = _space("Cityscapes labelIds", _CITYSCAPES_IDS, range(35))  # 34 is the licence plate
TRAIN_IDS = _space("Cityscapes train ids", _IDENTITY, (*range(19), IGNORE))
BDD100K = _space("BDD100K semantic segmentation", _IDENTITY, (*range(19), IGNORE))
MAPILLARY_A = _space("Mapillary Vistas v1.2, mapping A", _MAPILLARY_A, range(66))
MAPILLARY_B = _space("Mapillary Vistas v1.2, mapping B", _MAPILLARY_B, range(66))
GTAV = _space("GTAV", _CITYSCAPES_IDS, range(35))
SYNTHIA = LabelSpace(
    name="SYNTHIA-RAND-CITYSCAPES",
    train_ids=_SYNTHIA_IDS,
    ignored=frozenset(range(23)) - frozenset(_SYNTHIA_IDS),
    encoding="synthia",
    never_occurs=(9, 14, 16),
)

# The two sets of train ids over which results on SYNTHIA are reported.
SYNTHIA_16 = tuple(train_id for train_id in range(19) if train_id not in SYNTHIA.never_occurs)
SYNTHIA_13 = tuple(train_id for train_id in SYNTHIA_16 if CLASSES[train_id] not in ("wall", "fence", "pole"))
