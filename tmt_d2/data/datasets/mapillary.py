"""Mapillary Vistas v1.2 (Neuhold et al., 2017), under two mappings of its 66 ids to the 19 classes."""

from __future__ import annotations

from typing import Any

from tmt_d2.data.datasets.label_spaces import LabelSpace
from tmt_d2.data.datasets.layouts import Layout

PALETTE = (
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
)  # RGB, in the order of the ids of v1.2: what its label files hold  # fmt: skip

IDS_A = {
    2: 1, 3: 4, 6: 3, 13: 0, 15: 1, 17: 2, 19: 11, 20: 12, 21: 12, 22: 12, 24: 0, 27: 10, 29: 9, 30: 8, 41: 0, 45: 5,
    47: 5, 48: 6, 50: 7, 52: 18, 54: 15, 55: 13, 57: 17, 58: 16, 61: 14,
}  # fmt: skip
IDS_B = {
    **{value: train_id for value, train_id in IDS_A.items() if value != 41},
    7: 0, 8: 0, 9: 1, 10: 0, 11: 1, 14: 0, 23: 0, 44: 5, 46: 7, 49: 7,
}  # fmt: skip

_COMMON: dict[str, Any] = {
    "label_files": "those of v1.2/labels, not of v1.2/instances or panoptic",
    "other_version": "these are v2.0 labels: take those of v1.2, in {training,validation}/v1.2/labels",
    "other_version_color": (250, 170, 31),
}
MAPILLARY_A = LabelSpace.of("Mapillary Vistas v1.2, mapping A", IDS_A, range(66), **_COMMON)
MAPILLARY_B = LabelSpace.of("Mapillary Vistas v1.2, mapping B", IDS_B, range(66), **_COMMON)
LAYOUT = Layout(
    title="Mapillary Vistas",
    folder="mapillary_vistas",
    images=("{split}/images/{stem}.jpg",),
    # In an archive that holds both v1.2 and v2.0, {split}/labels is no part of the data set.
    labels=("{split}/v1.2/labels/{stem}.png", "{split}/labels/{stem}.png"),
    splits={"train": ("training", 18000), "val": ("validation", 2000)},
)
