"""Mask2Former's parts and the meta-architectures; importing this registers them with Detectron2."""

from .backbone import D2SwinTransformer
from .criterion import SetCriterion
from .deformable_attention import MSDeformAttn, ms_deform_attn
from .mask_former import MaskFormer, TransferableMaskFormer
from .mask_former_head import MaskFormerHead
from .masked_attention import attention_mask
from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = [
    "D2SwinTransformer",
    "MSDeformAttn",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
    "SetCriterion",
    "TransferableMaskFormer",
    "attention_mask",
    "ms_deform_attn",
]
