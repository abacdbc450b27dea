"""Mask2Former's parts and the meta-architectures; importing this registers them with Detectron2."""

from detectron2.projects import deeplab as _  # noqa: F401  registers build_resnet_deeplab_backbone

from tmt_d2.modeling.backbones.swin import D2SwinTransformer
from tmt_d2.modeling.backbones.timm_backbone import TimmBackbone
from tmt_d2.modeling.criterion import SetCriterion
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.mask_former_head import MaskFormerHead
from tmt_d2.modeling.ops.deformable_attention import MSDeformAttn, ms_deform_attn
from tmt_d2.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = [
    "D2SwinTransformer",
    "MSDeformAttn",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
    "SetCriterion",
    "TimmBackbone",
    "TransferableMaskFormer",
    "ms_deform_attn",
]
