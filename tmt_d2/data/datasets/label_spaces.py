"""The 19 Cityscapes train classes, and ``LabelSpace``: the table from a data set's label ids to train ids.

Each data set has its table in its own file, taken from its documentation and the label definitions of
``cityscapesScripts`` (see docs/data.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tmt_d2.data.class_lists import RGB, ClassList, unnamed, with_colors

IGNORE = 255  # train id of pixels that are excluded from training and evaluation
OUTSIDE = 254  # lookup value of an id that the data set does not define, which is an error

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # RGB, in the order of CLASSES  # fmt: skip

TRAIN_ID = {name: index for index, name in enumerate(CLASSES)}
CITYSCAPES_CLASSES = ClassList(CLASSES, PALETTE)


def class_list(names: Sequence[str], given: Mapping[str, RGB]) -> ClassList:
    """Return a class list with the given colors.

    The other names get the color of Cityscapes if it is one of the 19 and its color is free, else a generated color.
    """
    familiar = {name: PALETTE[TRAIN_ID[name]] for name in names if name in TRAIN_ID and name not in given}
    taken = set(given.values())
    return with_colors(names, {**given, **{name: color for name, color in familiar.items() if color not in taken}})


def class_list_of(model: Any) -> ClassList:
    """Return ``classes`` of a ``MaskFormer``; if it is None the 19 classes of Cityscapes, or numbered ones."""
    count = model.sem_seg_head.num_classes
    return model.classes or (CITYSCAPES_CLASSES if count == len(CITYSCAPES_CLASSES) else unnamed(count))


@dataclass(frozen=True)
class LabelSpace:
    """Mapping from the pixel values of a data set's label files to train ids.

    Attributes:
        name: for messages, e.g. ``"Mapillary Vistas v1.2, mapping A"``.
        train_ids: id on disk -> train id.
        ignored: the other ids that the data set defines; they become ``IGNORE``.
        classes: of the train ids; all five data sets share ``CITYSCAPES_CLASSES``.
        encoding: ``"index"``, a gray or palette PNG of ids; ``"synthia"``, a 16-bit PNG with three channels, whose
            first (red) is the id.
        never_occurs: train ids that no label file holds, even if ``train_ids`` has them.
        colors: color -> train id or ``IGNORE``, for RGB label files.
        class_subsets: name -> train ids over which results are reported as well.
        label_files: which files of the data set are its labels, for messages. Empty: label files may come from any
            tool, so that ids in three equal channels are read.
        train_id_suffix: files with names that end with it hold train ids.
        other_version: hint where a label file holds undefined ids.
        other_version_color: color of id 2 in the palette of label files whose ids mean other things.
    """

    name: str
    train_ids: Mapping[int, int]
    ignored: frozenset[int]
    classes: ClassList = CITYSCAPES_CLASSES
    encoding: Literal["index", "synthia"] = "index"
    never_occurs: tuple[int, ...] = ()
    colors: Mapping[RGB, int] = field(default_factory=dict)
    class_subsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    label_files: str = ""
    train_id_suffix: str = ""
    other_version: str = ""
    other_version_color: RGB | None = None

    def lookup(self) -> np.ndarray:
        """Return a (256,) uint8 table: id on disk -> train id, ``IGNORE``, or ``OUTSIDE`` for an undefined id."""
        table = np.full(256, OUTSIDE, np.uint8)
        table[sorted(self.ignored)] = IGNORE
        for value, train_id in self.train_ids.items():
            table[value] = train_id
        return table

    @classmethod
    def of(cls, name: str, train_ids: Mapping[int, int], defined: Iterable[int], **values: Any) -> LabelSpace:
        """Return a label space in which the ids of ``defined`` without a train id are ignored."""
        return cls(name, train_ids, frozenset(defined) - frozenset(train_ids), **values)


TRAIN_IDS = LabelSpace.of("Cityscapes train ids", {index: index for index in range(19)}, (*range(19), IGNORE))
