"""Mask2Former's transformer decoder: queries that repeatedly attend to a pyramid, each inside its own predicted mask.

Letters: B images, Q queries, C channels, (H, W) a level, K = H*W, N classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from detectron2.utils.registry import Registry
from fvcore.nn import weight_init
from torch import Tensor, nn

from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_logits import DecoderOutputs, MaskLogits, QueryOutputs
from tmt_d2.modeling.masked_attention import MaskedPositions, MultiheadAttention, masked_positions
from tmt_d2.modeling.ops.linear import Linear
from tmt_d2.modeling.ops.position_encoding import sine_position_encoding
from tmt_d2.modeling.ops.resize import resize

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = "Transformer decoders of mask-classification models, by official name."


class CrossAttentionLayer(nn.Module):
    """Queries attend to one level of the pyramid; residual, post-norm."""

    def __init__(self, d_model: int, nhead: int):
        super().__init__()
        self.multihead_attn = MultiheadAttention(d_model, nhead)
        self.norm = nn.LayerNorm(d_model)

    def forward(
        self,
        queries: Tensor,
        query_pos: Tensor,
        keys: Tensor,
        values: Tensor,
        allowed: Tensor,
    ) -> Tensor:
        """queries, query_pos (B, Q, C); keys, values (B, K, C); allowed (B, Q, K) bool -> (B, Q, C)."""
        attended = self.multihead_attn(queries + query_pos, keys, values, allowed)
        return self.norm(queries + attended)


class SelfAttentionLayer(nn.Module):
    """Queries attend to each other; residual, post-norm."""

    def __init__(self, d_model: int, nhead: int):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, queries: Tensor, query_pos: Tensor) -> Tensor:
        with_pos = queries + query_pos
        return self.norm(queries + self.self_attn(with_pos, with_pos, queries))


class FFNLayer(nn.Module):
    """Position-wise feed-forward network; residual, post-norm."""

    def __init__(self, d_model: int, dim_feedforward: int):
        super().__init__()
        self.linear1 = Linear(d_model, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, d_model)
        self.norm = nn.LayerNorm(d_model)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, queries: Tensor) -> Tensor:
        return self.norm(queries + self.linear2(self.linear1(queries, relu=True)))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, relu=True)
        return self.layers[-1](x)


class KeyMask(NamedTuple):
    """Key positions that all queries may attend to, for each level; None = all positions.

    valid: (B, H, W) bool, False = padding. allowed: (B, H, W) bool, True = may be attended to.
    """

    valid: Sequence[Tensor] | None = None
    allowed: Sequence[Tensor] | None = None


ALL_KEYS = KeyMask()


class DecoderInputs(NamedTuple):
    """levels: (B, C, H, W) of each stride of ``STRIDES``. mask_features: (B, C_mask, H/4, W/4)."""

    levels: Sequence[Tensor]
    mask_features: Tensor
    key_mask: KeyMask = ALL_KEYS


class LayerTrace(NamedTuple):
    """Masks and attention weights of one decoder layer, for visualization.

    level: index into the pyramid. positions: of its keys, as maps (B, Q, H, W). attention: (B, M, Q, H, W) weights per
    head.
    """

    level: int
    positions: MaskedPositions
    attention: Tensor


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Decoder layer i attends to level i mod 3 of the pyramid (strides 32, 16, 8). State-dict names are official."""

    num_levels = 3
    _version = 2  # see MaskFormerHead

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        mask_dim: int,
        enforce_input_project: bool,
        mask_rule: str,
        lambda_m: float,
    ):
        """
        Args:
            in_channels: C of the pyramid. num_classes: N, without "no object". dec_layers: decoder layers, >= 1.
            mask_rule, lambda_m: see ``masked_positions``.
        """
        super().__init__()
        self.num_layers, self.mask_rule, self.lambda_m = dec_layers, mask_rule, lambda_m
        layers = range(dec_layers)
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(hidden_dim, nheads) for _ in layers)
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(hidden_dim, nheads) for _ in layers)
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(hidden_dim, dim_feedforward) for _ in layers)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(self.num_levels, hidden_dim)
        self.input_proj = nn.ModuleList(nn.Sequential() for _ in range(self.num_levels))
        if in_channels != hidden_dim or enforce_input_project:
            self.input_proj = nn.ModuleList(Conv2d(in_channels, hidden_dim, 1) for _ in range(self.num_levels))
            for projection in self.input_proj:
                weight_init.c2_xavier_fill(projection)
            self.input_proj[dec_layers:].requires_grad_(False)  # levels that no layer attends to
        self.class_embed = Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, Any]:
        former = cfg.MODEL.MASK_FORMER
        if former.PRE_NORM:
            message = "only post-norm is built, as in all official models"
            raise UserError(message, key="MODEL.MASK_FORMER.PRE_NORM", value=former.PRE_NORM)
        if former.DEC_LAYERS < 2:
            message = "it is the number of decoder layers + 1, so at least 2"
            raise UserError(message, key="MODEL.MASK_FORMER.DEC_LAYERS", value=former.DEC_LAYERS)
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": former.HIDDEN_DIM,
            "num_queries": former.NUM_OBJECT_QUERIES,
            "nheads": former.NHEADS,
            "dim_feedforward": former.DIM_FEEDFORWARD,
            "dec_layers": former.DEC_LAYERS - 1,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": former.ENFORCE_INPUT_PROJ,
            "mask_rule": cfg.MODEL.TMT.MASK_RULE,
            "lambda_m": cfg.MODEL.TMT.LAMBDA_M,
        }

    def forward(
        self,
        levels: Sequence[Tensor],
        mask_features: Tensor,
        key_mask: KeyMask = ALL_KEYS,
        trace: list[LayerTrace] | None = None,
    ) -> DecoderOutputs:
        """
        Args:
            levels, mask_features, key_mask: see ``DecoderInputs``.
            trace: a list to which the trace of every layer is appended; slower, for visualization only.
        """
        if len(levels) != self.num_levels:
            raise ValueError(f"{len(levels)} levels given, the decoder attends to {self.num_levels}")
        memories, keys, small_features = [], [], []  # keys: memories with their positions
        for index, (features, project) in enumerate(zip(levels, self.input_proj)):
            projected = project(features)
            height, width = projected.shape[-2:]
            channels = projected.shape[1]
            memories.append(projected.flatten(2).transpose(1, 2) + self.level_embed.weight[index])
            encoding = sine_position_encoding(height, width, channels, like=projected)
            keys.append(memories[-1] + encoding.flatten(1).T.to(projected.dtype))
            with torch.no_grad():  # masks steer attention but are not trained through it
                small_features.append(resize(mask_features, (height, width)))

        batch = mask_features.shape[0]
        queries = self.query_feat.weight.expand(batch, -1, -1)
        query_pos = self.query_embed.weight.expand(batch, -1, -1)
        predictions = [self._predict(queries, mask_features)]
        layers = zip(
            self.transformer_cross_attention_layers, self.transformer_self_attention_layers, self.transformer_ffn_layers
        )
        for index, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = index % self.num_levels
            with torch.no_grad():
                mask_logits = predictions[-1]["pred_masks"].resized(small_features[level])
                positions = masked_positions(
                    mask_logits,
                    None if key_mask.allowed is None else key_mask.allowed[level],
                    None if key_mask.valid is None else key_mask.valid[level],
                    self.mask_rule,
                    self.lambda_m,
                )
            if trace is not None:
                attention = cross_attention.multihead_attn
                weights = attention.weights(queries + query_pos, keys[level], positions.allowed)
                trace.append(
                    LayerTrace(
                        level, positions.as_maps(*mask_logits.shape[-2:]), weights.unflatten(-1, mask_logits.shape[-2:])
                    )
                )
            queries = cross_attention(queries, query_pos, keys[level], memories[level], positions.allowed)
            queries = self_attention(queries, query_pos)
            queries = feed_forward(queries)
            predictions.append(self._predict(queries, mask_features))
        return {**predictions[-1], "aux_outputs": predictions[:-1]}

    def _predict(self, queries: Tensor, mask_features: Tensor) -> QueryOutputs:
        normed = self.decoder_norm(queries)
        masks = MaskLogits(self.mask_embed(normed), mask_features)
        return {"pred_logits": self.class_embed(normed), "pred_masks": masks}
