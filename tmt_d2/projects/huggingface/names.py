"""Names of state-dict entries: ours -> those of Hugging Face's Mask2Former.

Names there are those of the published ``facebook/mask2former-*`` files, which every version of ``transformers`` reads
and writes. Queries, keys and values are three entries there and one stacked entry here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tmt_d2.errors import UserError

_ENCODER = "model.pixel_level_module.encoder."
Names = Mapping[str, str | tuple[str, ...]]


def _below(ours: str, theirs: str, names: Names) -> dict[str, str | tuple[str, ...]]:
    """Prefix both sides of a table."""
    return {
        ours + own: theirs + other if isinstance(other, str) else tuple(theirs + each for each in other)
        for own, other in names.items()
    }


# Beginning of our name -> beginning of their name or names; the rest is equal. {} is a number. The first match counts.
_HEAD: Names = {
    **_below(
        "sem_seg_head.pixel_decoder.",
        "model.pixel_level_module.decoder.",
        {
            "input_proj.": "input_projections.",
            "transformer.level_embed": "level_embed",
            "transformer.encoder.layers.{}.self_attn.": "encoder.layers.{}.self_attn.",
            "transformer.encoder.layers.{}.norm1.": "encoder.layers.{}.self_attn_layer_norm.",
            "transformer.encoder.layers.{}.linear": "encoder.layers.{}.fc",
            "transformer.encoder.layers.{}.norm2.": "encoder.layers.{}.final_layer_norm.",
            "mask_features.": "mask_projection.",
            "adapter_1.norm.": "adapter_1.1.",
            "adapter_1.": "adapter_1.0.",
            "layer_1.norm.": "layer_1.1.",
            "layer_1.": "layer_1.0.",
        },
    ),
    **_below(
        "sem_seg_head.predictor.",
        "model.transformer_module.",
        {
            "query_embed.": "queries_embedder.",
            "query_feat.": "queries_features.",
            "level_embed.": "level_embed.",
            "input_proj.": "input_projections.",
            "decoder_norm.": "decoder.layernorm.",
            "mask_embed.layers.{}.": "decoder.mask_predictor.mask_embedder.{}.0.",
        },
    ),
    **_below(
        "sem_seg_head.predictor.transformer_",
        "model.transformer_module.decoder.layers.{}.",
        {
            "cross_attention_layers.{}.multihead_attn.": "cross_attn.",
            "cross_attention_layers.{}.norm.": "cross_attn_layer_norm.",
            "self_attention_layers.{}.self_attn.in_proj_": (
                "self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.",
            ),
            "self_attention_layers.{}.self_attn.out_proj.": "self_attn.out_proj.",
            "self_attention_layers.{}.norm.": "self_attn_layer_norm.",
            "ffn_layers.{}.linear": "fc",
            "ffn_layers.{}.norm.": "final_layer_norm.",
        },
    ),
    "sem_seg_head.predictor.class_embed.": "class_predictor.",
    "criterion.empty_weight": "criterion.empty_weight",
}  # fmt: skip
_SWIN: Names = {
    "backbone.patch_embed.proj.": _ENCODER + "embeddings.patch_embeddings.projection.",
    "backbone.patch_embed.norm.": _ENCODER + "embeddings.norm.",
    **_below(
        "backbone.layers.{}.blocks.{}.",
        _ENCODER + "encoder.layers.{}.blocks.{}.",
        {
            "norm1.": "layernorm_before.",
            "norm2.": "layernorm_after.",
            "attn.qkv.": ("attention.self.query.", "attention.self.key.", "attention.self.value."),
            "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
            "attn.proj.": "attention.output.dense.",
            "mlp.fc1.": "intermediate.dense.",
            "mlp.fc2.": "output.dense.",
        },
    ),
    "backbone.layers.{}.downsample.": _ENCODER + "encoder.layers.{}.downsample.",
    **{f"backbone.norm{i}.": f"{_ENCODER}hidden_states_norms.stage{i + 1}." for i in range(4)},
}
_RESNET: dict[str, str | tuple[str, ...]] = {
    "backbone.stem.conv1.norm.": _ENCODER + "embedder.embedder.normalization.",
    "backbone.stem.conv1.": _ENCODER + "embedder.embedder.convolution.",
}
for _stage in range(4):
    for _own, _other in (("shortcut", "shortcut"), ("conv1", "layer.0"), ("conv2", "layer.1"), ("conv3", "layer.2")):
        _RESNET |= _below(
            f"backbone.res{_stage + 2}.{{}}.{_own}.",
            f"{_ENCODER}encoder.stages.{_stage}.layers.{{}}.{_other}.",
            {"norm.": "normalization.", "": "convolution."},
        )
_PATTERNS = {
    backbone: [(re.compile(re.escape(ours).replace(r"\{\}", r"(\d+)")), theirs) for ours, theirs in table.items()]
    for backbone, table in {"swin": {**_HEAD, **_SWIN}, "resnet": {**_HEAD, **_RESNET}}.items()
}
# Entries there that are not read: of image classification, derived from the config, a counter.
UNUSED = re.compile(
    r".*\.encoder\.(swin\.)?layernorm\.(weight|bias)|criterion\.empty_weight"
    r"|.*\.(relative_position_index|num_batches_tracked)"
)


def names_there(name: str, backbone: str) -> list[str]:
    """Return the entries there that, stacked in order, are our entry.

    Args:
        backbone: "swin" or "resnet".

    Raises:
        UserError: there is no counterpart.
    """
    for pattern, theirs in _PATTERNS[backbone]:
        if match := pattern.match(name):
            rest, numbers = name[match.end() :], match.groups()
            return [each.format(*numbers) + rest for each in ([theirs] if isinstance(theirs, str) else theirs)]
    raise UserError("only Mask2Former with a Swin or ResNet backbone is converted", key=name)
