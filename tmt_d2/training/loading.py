"""A trained model from its config, on the machine that there is."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from tmt_d2.config import with_num_classes
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.training.checkpoint import TMTCheckpointer
from tmt_d2.training.checkpoint_classes import read_classes

logger = logging.getLogger(__name__)


def on_this_machine(cfg: CfgNode) -> CfgNode:
    """The config with MODEL.DEVICE cpu, which is said, where it asks for a GPU and there is none."""
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    logger.warning("MODEL.DEVICE is %s and there is no GPU here: running on the CPU", cfg.MODEL.DEVICE)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def load_model(cfg: CfgNode) -> MaskFormer:
    """The config's model with the weights MODEL.WEIGHTS, in evaluation mode; on the CPU where there is no GPU.

    Its classes are those that the checkpoint names, whatever the config was written for.

    Raises: as ``TMTCheckpointer.load``; and UserError without weights, or with those of a backbone alone.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: name a checkpoint")
    classes = read_classes(cfg.MODEL.WEIGHTS)
    if classes is not None:
        cfg = with_num_classes(cfg, len(classes))
    model = build_model(on_this_machine(cfg))
    model.classes = classes
    needs_estimator = isinstance(model, TransferableMaskFormer)
    TMTCheckpointer(model, require_estimator=needs_estimator, require_head=True).load(cfg.MODEL.WEIGHTS)
    return model.eval()
