"""Supervised fine-tuning on the labeled images of the target."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from tmt_d2.adaptation.task import Record, Task
from tmt_d2.data.datasets.registration import records_of
from tmt_d2.data.labeled import LabelChoice
from tmt_d2.modeling.official import ESTIMATOR


class FineTuning(Task):
    """The base of tasks that learn from the labels of the target that TRANSFER.LABEL_* choose."""

    @classmethod
    def label_choice(cls, cfg: CfgNode) -> LabelChoice:
        return LabelChoice.from_config(cfg)

    @classmethod
    def labeled_images(cls, cfg: CfgNode) -> dict[str, list[Record]]:
        return {"DATASETS.TRAIN": cls.label_choice(cfg).of(records_of(cfg.DATASETS.TRAIN))}

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> Task:
        for name, parameter in model.named_parameters():
            if name.startswith(ESTIMATOR) or not name.startswith(cls.trains or ""):
                parameter.requires_grad_(False)
        return cls(model)


class LinearProbing(FineTuning):
    name = "linear"
    about = "train the prediction layers only"
    trains = ("sem_seg_head.predictor.class_embed.", "sem_seg_head.predictor.mask_embed.")


class Full(FineTuning):
    name = "full"
    about = "train the whole model"
