"""The methods of fine-tuning, all in one table: stages, loaders, units and report read it, and compare no names.

A *variant* is a config file that changes keys of a method, such as ``tmt-square.yaml``; it needs no row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import nn

from tmt_d2.adaptation.method_training import MethodTraining
from tmt_d2.adaptation.self_training.training import self_training
from tmt_d2.errors import UserError, did_you_mean

PREDICTION_LAYERS = ("sem_seg_head.predictor.class_embed.", "sem_seg_head.predictor.mask_embed.")


@dataclass(frozen=True)
class Method:
    """
    Attributes:
        name: TRANSFER.METHOD, and the config file of that name.
        about: what it does, in a line of a table.
        starts_from: the stage whose checkpoint it begins with: "source" or "estimator".
        architecture: MODEL.META_ARCHITECTURE.
        trains: prefixes of the parameters that learn; none: the whole model. An estimator never learns here.
        raises: the transferability score that is raised by gradient before fine-tuning, or none.
        reads_source: that step also needs labelled source images, DATASETS.SOURCE_TRAIN.
        mixes_groups: a batch has labelled and unlabelled target and source images, as SELF_TRAINING says.
        training: config and model -> the module whose losses are minimised, batch -> dict of them; None: the model.
    """

    name: str
    about: str
    starts_from: str = "source"
    architecture: str = "MaskFormer"
    trains: tuple[str, ...] = ()
    raises: str = ""
    reads_source: bool = False
    mixes_groups: bool = False
    training: Callable[[CfgNode, nn.Module], MethodTraining] | None = None


METHODS = {
    method.name: method
    for method in (
        Method("linear", "only the prediction layers learn", trains=PREDICTION_LAYERS),
        Method("full", "the whole model learns"),
        Method("leep", "LEEP is raised first, then as full", raises="leep"),
        Method("otce", "F-OTCE is raised first, then as full", raises="otce", reads_source=True),
        Method(
            "full-ema",
            "as full; the moving average of its weights counts",
            mixes_groups=True,
            training=self_training,
        ),
        Method(
            "self-training",
            "the moving average of the model labels pictures without a label",
            mixes_groups=True,
            training=self_training,
        ),
        Method("tmt", "as full, and attention obeys transferability", "estimator", "TransferableMaskFormer"),
    )
}
BASELINE = "full"  # what the others are compared with
OURS = "tmt"  # whose gain is the question


def method_of(cfg: CfgNode) -> Method:
    """
    Raises:
        UserError: TRANSFER.METHOD is none of the table.
    """
    name = cfg.TRANSFER.METHOD
    if name not in METHODS:
        raise UserError(f"TRANSFER.METHOD is {name!r}: choose one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    return METHODS[name]
