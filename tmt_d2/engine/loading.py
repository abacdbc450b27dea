"""Loading of a trained model from its config, on the CPU where there is no GPU."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from tmt_d2.config import replace_keys
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.engine.checkpoint.classes import read_classes
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.tmt import TransferableMaskFormer

logger = logging.getLogger(__name__)


def on_this_machine(cfg: CfgNode) -> CfgNode:
    """Return the config, with MODEL.DEVICE cpu and a warning if it names a GPU and there is none."""
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    logger.warning("MODEL.DEVICE is %s and there is no GPU here: running on the CPU", cfg.MODEL.DEVICE)
    return replace_keys(cfg, {"MODEL.DEVICE": "cpu"})


def log_input_size(cfg: CfgNode, trains: bool = False) -> None:
    """Log the size of the model's input."""
    sizes, shortest = cfg.INPUT, cfg.INPUT.MIN_SIZE_TEST
    if trains:
        crop = "crops of {} x {}".format(*sizes.CROP.SIZE) if sizes.CROP.ENABLED else "the whole"
        logger.info(
            "training: %s of images of %d-%d pixels at the shortest edge (INPUT.CROP.SIZE, MIN_SIZE_TRAIN)",
            crop,
            min(sizes.MIN_SIZE_TRAIN),
            max(sizes.MIN_SIZE_TRAIN),
        )
    resized = f"are resized to {shortest} pixels at the shortest edge" if shortest else "keep their size"
    longest = sizes.MAX_SIZE_TEST
    logger.info("images %s, at most %d at the longest (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST)", resized, longest)


def load_model(cfg: CfgNode) -> MaskFormer:
    """Build the config's model with the weights MODEL.WEIGHTS, in evaluation mode.

    The number of classes is that of the checkpoint if it names its classes, else that of the config.

    Raises:
        FileNotFoundError, UserError: no weights, those of a backbone alone, or as ``TMTCheckpointer.load``.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("empty", key="MODEL.WEIGHTS", hint="name a checkpoint")
    log_input_size(cfg)
    classes = read_classes(cfg.MODEL.WEIGHTS)
    if classes is not None:
        cfg = replace_keys(cfg, {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(classes)})
    model = build_model(on_this_machine(cfg))
    model.classes = classes
    needs_estimator = isinstance(model, TransferableMaskFormer)
    TMTCheckpointer(model, require_estimator=needs_estimator, require_head=True).load(cfg.MODEL.WEIGHTS)
    return model.eval()
