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

    _version = 2  # goes into checkpoints: below 2 the official code would rename the entries

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
        for key, name, built in (
            ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", head.PIXEL_DECODER_NAME, SEM_SEG_HEADS_REGISTRY),
            (
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
                former.TRANSFORMER_DECODER_NAME,
                TRANSFORMER_DECODER_REGISTRY,
            ),
        ):
            if name not in built:
                raise UserError(f"{key} is {name!r}: of the official parts, only those of Mask2Former are built here")
        build_pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(head.PIXEL_DECODER_NAME)
        build_predictor = TRANSFORMER_DECODER_REGISTRY.get(former.TRANSFORMER_DECODER_NAME)
        if former.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise UserError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {former.TRANSFORMER_IN_FEATURE!r}: masked attention "
                "needs 'multi_scale_pixel_decoder'"
            )
        return {
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "predictor": build_predictor(cfg, head.CONVS_DIM),
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
        }
