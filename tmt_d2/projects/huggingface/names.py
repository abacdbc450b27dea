"""Entry names of Hugging Face's Mask2Former <-> ours.

Names there are those of the published ``facebook/mask2former-*`` files, which ``transformers`` reads and writes in
every version; those inside its recent versions are understood too. Queries, keys and values are stored there one by
one, here as one entry.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from tmt_d2.errors import UserError


def _within(there: str, here: str, names: dict[str, str]) -> dict[str, str]:
    return {there + name: here + other for name, other in names.items()}


# Name there: name here. {i}, {j} and {k} are numbers, {i+1} the number plus one, {p} the rest of the name.
_BACKBONE = "model.pixel_level_module.encoder."
_COMMON = {
    **_within(
        "model.pixel_level_module.decoder.",
        "sem_seg_head.pixel_decoder.",
        {
            "input_projections.{i}.{p}": "input_proj.{i}.{p}",
            "level_embed": "transformer.level_embed",
            "encoder.layers.{i}.self_attn.{p}": "transformer.encoder.layers.{i}.self_attn.{p}",
            "encoder.layers.{i}.self_attn_layer_norm.{p}": "transformer.encoder.layers.{i}.norm1.{p}",
            "encoder.layers.{i}.fc1.{p}": "transformer.encoder.layers.{i}.linear1.{p}",
            "encoder.layers.{i}.fc2.{p}": "transformer.encoder.layers.{i}.linear2.{p}",
            "encoder.layers.{i}.final_layer_norm.{p}": "transformer.encoder.layers.{i}.norm2.{p}",
            "mask_projection.{p}": "mask_features.{p}",
            "adapter_1.0.weight": "adapter_1.weight",
            "adapter_1.1.{p}": "adapter_1.norm.{p}",
            "layer_1.0.weight": "layer_1.weight",
            "layer_1.1.{p}": "layer_1.norm.{p}",
        },
    ),
    **_within(
        "model.transformer_module.",
        "sem_seg_head.predictor.",
        {
            "queries_embedder.weight": "query_embed.weight",
            "queries_features.weight": "query_feat.weight",
            "level_embed.weight": "level_embed.weight",
            "input_projections.{i}.{p}": "input_proj.{i}.{p}",
            "decoder.layernorm.{p}": "decoder_norm.{p}",
            "decoder.mask_predictor.mask_embedder.{i}.0.{p}": "mask_embed.layers.{i}.{p}",
        },
    ),
    **_within(
        "model.transformer_module.decoder.layers.{i}.",
        "sem_seg_head.predictor.transformer_",
        {
            "cross_attn.{p}": "cross_attention_layers.{i}.multihead_attn.{p}",
            "cross_attn_layer_norm.{p}": "cross_attention_layers.{i}.norm.{p}",
            "self_attn.q_proj.{p}": "self_attention_layers.{i}.self_attn.in_proj_{p}",
            "self_attn.k_proj.{p}": "self_attention_layers.{i}.self_attn.in_proj_{p}",
            "self_attn.v_proj.{p}": "self_attention_layers.{i}.self_attn.in_proj_{p}",
            "self_attn.out_proj.{p}": "self_attention_layers.{i}.self_attn.out_proj.{p}",
            "self_attn_layer_norm.{p}": "self_attention_layers.{i}.norm.{p}",
            "fc1.{p}": "ffn_layers.{i}.linear1.{p}",
            "fc2.{p}": "ffn_layers.{i}.linear2.{p}",
            "final_layer_norm.{p}": "ffn_layers.{i}.norm.{p}",
        },
    ),
    "class_predictor.{p}": "sem_seg_head.predictor.class_embed.{p}",
    "criterion.empty_weight": "criterion.empty_weight",
}
_SWIN = {
    _BACKBONE + "embeddings.patch_embeddings.projection.{p}": "backbone.patch_embed.proj.{p}",
    _BACKBONE + "embeddings.norm.{p}": "backbone.patch_embed.norm.{p}",
    **_within(
        _BACKBONE + "encoder.layers.{i}.blocks.{j}.",
        "backbone.layers.{i}.blocks.{j}.",
        {
            "layernorm_before.{p}": "norm1.{p}",
            "layernorm_after.{p}": "norm2.{p}",
            "attention.self.query.{p}": "attn.qkv.{p}",
            "attention.self.key.{p}": "attn.qkv.{p}",
            "attention.self.value.{p}": "attn.qkv.{p}",
            "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
            "attention.self.relative_position_index": "attn.relative_position_index",
            "attention.output.dense.{p}": "attn.proj.{p}",
            "intermediate.dense.{p}": "mlp.fc1.{p}",
            "output.dense.{p}": "mlp.fc2.{p}",
        },
    ),
    _BACKBONE + "encoder.layers.{i}.downsample.{p}": "backbone.layers.{i}.downsample.{p}",
    _BACKBONE + "hidden_states_norms.stage{i+1}.{p}": "backbone.norm{i}.{p}",
}
_RESNET = {
    _BACKBONE + "embedder.embedder.convolution.weight": "backbone.stem.conv1.weight",
    _BACKBONE + "embedder.embedder.normalization.{p}": "backbone.stem.conv1.norm.{p}",
    **_within(
        _BACKBONE + "encoder.stages.{i}.layers.{j}.",
        "backbone.res{i+2}.{j}.",
        {
            "shortcut.convolution.weight": "shortcut.weight",
            "shortcut.normalization.{p}": "shortcut.norm.{p}",
            "layer.{k}.convolution.weight": "conv{k+1}.weight",
            "layer.{k}.normalization.{p}": "conv{k+1}.norm.{p}",
        },
    ),
}
_NAMES = {"swin": _COMMON | _SWIN, "resnet": _COMMON | _RESNET}
_NOT_USED = re.compile(re.escape(_BACKBONE) + r"(swin\.)?layernorm\.(weight|bias)")  # of image classification
# Of a backbone: inside recent versions of transformers, in the files that they write.
_PUBLISHED = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.relative_position_bias.relative": "attention.self.relative",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_FIELD = re.compile(r"\{([ijkp])(?:\+(\d+))?\}")


class Part(NamedTuple):
    """What an entry there is: part ``number`` of the ``total`` that, stacked in order, are our entry ``name``."""

    name: str
    number: int
    total: int


def name_here(name: str, backbone: str) -> Part | None:
    """The place here of an entry there; None: it is not used. backbone: "swin" or "resnet".

    Raises:
        UserError: no counterpart.
    """
    if _NOT_USED.fullmatch(name):
        return None
    published = _published(name)
    for there, here in _NAMES[backbone].items():
        found = _renamed(published, there, here)
        if found is not None:
            parts = [other for other, same in _NAMES[backbone].items() if same == here]
            return Part(found, parts.index(there), len(parts))
    raise _no_counterpart(name)


def names_there(name: str, backbone: str) -> list[str]:
    """The entries there that an entry here becomes, one for each of its equal parts.

    Raises:
        UserError: no counterpart.
    """
    found = [_renamed(name, here, there) for there, here in _NAMES[backbone].items()]
    names = [other for other in found if other is not None]
    if not names:
        raise _no_counterpart(name)
    return names


def _no_counterpart(name: str) -> UserError:
    return UserError(f"{name} has no counterpart: only Mask2Former with a Swin or ResNet backbone is converted")


def _published(name: str) -> str:
    name = name.replace(_BACKBONE + "swin.", _BACKBONE)
    if name.startswith(_BACKBONE):
        for new, published in _PUBLISHED.items():
            name = name.replace(new, published)
    return name


def _renamed(name: str, template: str, other: str) -> str | None:
    """``other`` with its fields filled from ``name``; None where the whole of ``name`` does not fit ``template``."""
    pattern, offsets = _compiled(template)
    match = pattern.fullmatch(name)
    if match is None:
        return None

    def fill(field: re.Match[str]) -> str:
        letter, value = field[1], match[field[1]]
        return value if letter == "p" else str(int(value) - offsets[letter] + int(field[2] or 0))

    return _FIELD.sub(fill, other)


@cache
def _compiled(template: str) -> tuple[re.Pattern[str], dict[str, int]]:
    """Pattern with a group for each field, and what the template adds to each number."""
    first, *rest = _FIELD.split(template)  # literal, then letter, offset, literal of each field
    pattern, offsets = re.escape(first), {}
    for letter, offset, literal in zip(rest[::3], rest[1::3], rest[2::3]):
        pattern += f"(?P<{letter}>" + (".+" if letter == "p" else r"\d+") + ")" + re.escape(literal)
        offsets[letter] = int(offset or 0)
    return re.compile(pattern), offsets
