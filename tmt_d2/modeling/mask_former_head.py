"""``MaskFormerHead``: pixel decoder and transformer decoder behind one name, as the official state dict has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from tmt_d2.errors import UserError
from tmt_d2.modeling.transformer_decoder import TRANSFORMER_DECODER_REGISTRY


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Container of the two parts, which ``MaskFormer`` calls one after the other."""

    _version = 2  # stored in checkpoints: below 2 the official code renames the entries

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module, num_classes: int, ignore_value: int):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.num_classes = num_classes
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        pixel_decoder, predictor = head.PIXEL_DECODER_NAME, former.TRANSFORMER_DECODER_NAME
        only = "only the parts of Mask2Former are built"
        if pixel_decoder not in SEM_SEG_HEADS_REGISTRY:
            raise UserError(only, key="MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", value=pixel_decoder)
        if predictor not in TRANSFORMER_DECODER_REGISTRY:
            raise UserError(only, key="MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", value=predictor)
        if former.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise UserError(
                "masked attention needs 'multi_scale_pixel_decoder'",
                key="MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE",
                value=former.TRANSFORMER_IN_FEATURE,
            )
        return {
            "pixel_decoder": SEM_SEG_HEADS_REGISTRY.get(pixel_decoder)(cfg, input_shape),
            "predictor": TRANSFORMER_DECODER_REGISTRY.get(predictor)(cfg, head.CONVS_DIM),
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
        }
