"""Cityscapes (Cordts et al., 2016): label ids 0 to 34, city folders."""

from __future__ import annotations

from tmt_d2.data.datasets.label_spaces import LabelSpace
from tmt_d2.data.datasets.layouts import Layout

IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip

CITYSCAPES = LabelSpace.of(
    "Cityscapes labelIds",
    IDS,
    range(35),  # 34 is the license plate
    label_files="*_gtFine_labelIds.png, beside *_instanceIds.png and *_color.png",
    train_id_suffix="_labelTrainIds.png",
)
LAYOUT = Layout(
    title="Cityscapes",
    folder="cityscapes",
    images=("leftImg8bit/{split}/*/{stem}_leftImg8bit.png",),
    labels=("gtFine/{split}/*/{stem}_gtFine_labelIds.png", "gtFine/{split}/*/{stem}_gtFine_labelTrainIds.png"),
    splits={"train": ("train", 2975), "val": ("val", 500)},
)
