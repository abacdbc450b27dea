"""BDD100K (Yu et al., 2020), 10k semantic segmentation: masks of train ids, in the current or the older layout."""

from __future__ import annotations

from tmt_d2.data.datasets.label_spaces import TRAIN_IDS, LabelSpace
from tmt_d2.data.datasets.layouts import Layout

BDD100K = LabelSpace(
    "BDD100K semantic segmentation",
    TRAIN_IDS.train_ids,
    TRAIN_IDS.ignored,
    label_files="those of labels/sem_seg/masks, not of ins_seg, pan_seg or colormaps",
)
LAYOUT = Layout(
    title="BDD100K",
    folder="bdd100k",
    images=("images/10k/{split}/{stem}.jpg", "seg/images/{split}/{stem}.jpg"),
    labels=("labels/sem_seg/masks/{split}/{stem}.png", "seg/labels/{split}/{stem}_train_id.png"),
    splits={"train": ("train", 7000), "val": ("val", 1000)},
    unlabeled_allowed=True,  # an older archive has a handful of images without labels
)
