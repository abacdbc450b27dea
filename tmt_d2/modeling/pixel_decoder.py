"""Mask2Former's pixel decoder: a deformable-attention encoder over three backbone levels, then an FPN step to 1/4.

On a GPU it runs in float32 under autocast too, as the official one: half precision would round the sampled values of
deformable attention. On a CPU, where it takes a larger share of the time, its convolutions and linear layers obey
autocast; sampling locations, attention weights and residual sums stay in float32 (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn

from tmt_d2.errors import UserError
from tmt_d2.modeling.ops.deformable_attention import MSDeformAttn
from tmt_d2.modeling.ops.linear import Linear
from tmt_d2.modeling.ops.position_encoding import sine_position_encoding
from tmt_d2.modeling.ops.resize import resize

STRIDES = (32, 16, 8)  # levels that the decoder attends to


class PixelFeatures(NamedTuple):
    """mask_features: (B, C_mask, H/4, W/4); levels: (B, C, H/s, W/s) float32 for s in STRIDES, coarsest first."""

    mask_features: Tensor
    levels: list[Tensor]


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward network; post-norm."""

    def __init__(self, d_model: int, d_ffn: int, dropout: float, n_levels: int, n_heads: int, n_points: int):
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, d_ffn)
        self.linear2 = Linear(d_ffn, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, source: Tensor, position: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        attended = self.self_attn(source + position, reference_points, source, spatial_shapes)
        source = self.norm1(source + self.dropout(attended))
        hidden = self.dropout(self.linear1(source, relu=True))
        return self.norm2(source + self.dropout(self.linear2(hidden)))


class Encoder(nn.Module):
    """The encoder layers one after the other (a module of its own for the official state-dict names)."""

    def __init__(self, layers: list[EncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, source: Tensor, position: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        for layer in self.layers:
            source = layer(source, position, reference_points, spatial_shapes)
        return source


class DeformableEncoder(nn.Module):
    """Adds position and level encodings to a pyramid and runs the encoder over all of its positions."""

    def __init__(
        self, d_model: int, n_heads: int, n_layers: int, d_ffn: int, dropout: float, n_levels: int, n_points: int
    ):
        super().__init__()
        layers = [EncoderLayer(d_model, d_ffn, dropout, n_levels, n_heads, n_points) for _ in range(n_layers)]
        self.encoder = Encoder(layers)
        self.level_embed = nn.Parameter(torch.empty(n_levels, d_model))
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and "self_attn" not in name:  # attention initializes itself
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.level_embed)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """List of (B, C, H, W) -> list of the same shapes."""
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        source = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)  # (B, S, C)
        channels = source.shape[-1]
        positions = [
            sine_position_encoding(h, w, channels, like=source).flatten(1).T + embed
            for (h, w), embed in zip(shapes, self.level_embed)
        ]
        encoded = self.encoder(source, torch.cat(positions)[None], _pixel_centers(shapes, source), shapes)
        parts = encoded.split([h * w for h, w in shapes], dim=1)
        return [part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes)]  # channels last


def _pixel_centers(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(S, 2): (x, y) in [0, 1] of every position of every level."""
    centers = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=like.device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=like.device) + 0.5) / width
        centers.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1))
    return torch.cat(centers)


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone features -> ``PixelFeatures``. State-dict names are the official ones."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        transformer_in_features: Sequence[str],
        transformer_n_points: int,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone features.
            transformer_in_features: the features that the encoder sees, e.g. res3, res4, res5; ``input_shape`` holds
                exactly one more, of half the finest stride among them, for the FPN step.
            conv_dim: C of the levels. mask_dim: C of the mask features. norm: of the FPN convolutions, e.g. "GN".
        """
        super().__init__()
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.level_names = [name for name in by_stride[::-1] if name in transformer_in_features]
        lateral = [name for name in by_stride if name not in transformer_in_features]
        if len(lateral) != 1 or input_shape[lateral[0]].stride * 2 != input_shape[self.level_names[-1]].stride:
            raise UserError(
                f"must be {list(transformer_in_features)}, DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES, and one feature "
                "of half the finest stride among them",
                key="MODEL.SEM_SEG_HEAD.IN_FEATURES",
                value=by_stride,
            )
        self.lateral_name = lateral[0]
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(input_shape[name].channels, conv_dim, 1), nn.GroupNorm(32, conv_dim))
            for name in self.level_names
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.transformer = DeformableEncoder(
            conv_dim,
            transformer_nheads,
            transformer_enc_layers,
            transformer_dim_feedforward,
            transformer_dropout,
            len(self.level_names),
            transformer_n_points,
        )
        self.mask_features = Conv2d(conv_dim, mask_dim, 1)
        bias = norm == ""
        lateral_channels = input_shape[self.lateral_name].channels
        self.adapter_1 = Conv2d(lateral_channels, conv_dim, 1, bias=bias, norm=get_norm(norm, conv_dim))
        self.layer_1 = Conv2d(
            conv_dim, conv_dim, 3, padding=1, bias=bias, norm=get_norm(norm, conv_dim), activation=F.relu_
        )
        for convolution in (self.mask_features, self.adapter_1, self.layer_1):
            weight_init.c2_xavier_fill(convolution)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "transformer_dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "transformer_nheads": cfg.MODEL.MASK_FORMER.NHEADS,
            "transformer_dim_feedforward": 1024,  # fixed in the official code too
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "transformer_n_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
        }

    def forward(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        """``features``: name -> (B, C, H/s, W/s) of the backbone, of any precision."""
        levels = self.levels(features)
        with _official_precision([features[self.lateral_name]]) as (lateral,):
            lateral = self.adapter_1(lateral)
            upsampled = resize(levels[-1], lateral.shape[-2:])
            return PixelFeatures(self.mask_features(self.layer_1(lateral + upsampled)), levels)

    def levels(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the levels of ``forward`` alone, without the FPN step to 1/4 (of R50's pass it is a fifth)."""
        with _official_precision([features[name] for name in self.level_names]) as inputs:
            return self.transformer([project(each) for each, project in zip(inputs, self.input_proj)])


@contextmanager
def _official_precision(features: list[Tensor]) -> Iterator[list[Tensor]]:
    """On a GPU yield the features in float32, and disable autocast; on a CPU yield them as they are."""
    device = features[0].device.type
    if device == "cpu":
        yield features
        return
    with torch.autocast(device, enabled=False):
        yield [each.float() for each in features]
