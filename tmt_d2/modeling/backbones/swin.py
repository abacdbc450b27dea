"""``D2SwinTransformer``: Detectron2's Swin under the official Mask2Former name, keys and feature names.

Differences from Detectron2's class: features are called res2 ... res5 instead of p0 ... p3, and blocks are left out in
training (``DROP_PATH_RATE``, arXiv 1603.09382) without the package ``timm``.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor
from torchvision.ops import StochasticDepth

from tmt_d2.errors import UserError

_FEATURES = ("res2", "res3", "res4", "res5")


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer, Backbone):
    """Swin Transformer (arXiv 2103.14030) configured by ``MODEL.SWIN``."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec):
        swin = cfg.MODEL.SWIN
        unknown = sorted(set(swin.OUT_FEATURES) - set(_FEATURES))
        if unknown:
            hint = f"choose from {', '.join(_FEATURES)}"
            raise UserError(
                f"unknown {', '.join(unknown)}", key="MODEL.SWIN.OUT_FEATURES", value=swin.OUT_FEATURES, hint=hint
            )
        super().__init__(
            pretrain_img_size=swin.PRETRAIN_IMG_SIZE,
            patch_size=swin.PATCH_SIZE,
            in_chans=input_shape.channels,
            embed_dim=swin.EMBED_DIM,
            depths=swin.DEPTHS,
            num_heads=swin.NUM_HEADS,
            window_size=swin.WINDOW_SIZE,
            mlp_ratio=swin.MLP_RATIO,
            qkv_bias=swin.QKV_BIAS,
            qk_scale=swin.QK_SCALE,
            drop_rate=swin.DROP_RATE,
            attn_drop_rate=swin.ATTN_DROP_RATE,
            drop_path_rate=0.0,  # set below: Detectron2's own needs timm
            ape=swin.APE,
            patch_norm=swin.PATCH_NORM,
            out_indices=[_FEATURES.index(name) for name in swin.OUT_FEATURES],
            use_checkpoint=swin.USE_CHECKPOINT,
        )
        blocks = [block for layer in self.layers for block in layer.blocks]
        for index, block in enumerate(blocks):  # the rate grows linearly with depth; "row": images are drawn one by one
            block.drop_path = StochasticDepth(swin.DROP_PATH_RATE * index / max(len(blocks) - 1, 1), "row")
        self._out_features = list(swin.OUT_FEATURES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res2": (B, C, H/4, W/4), ..., "res5": (B, 8C, H/32, W/32)} of ``OUT_FEATURES``."""
        features = super().forward(x)
        return {name: features[f"p{_FEATURES.index(name)}"] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.num_features[_FEATURES.index(name)], stride=4 * 2 ** _FEATURES.index(name))
            for name in self._out_features
        }

    @property
    def size_divisibility(self) -> int:
        return 32
