"""Mask2Former of Hugging Face ``transformers`` (Swin or ResNet backbone) <-> our config and state dict.

Nothing here imports ``transformers``: a model there is a folder with ``config.json`` and safetensors files, whose entries
differ from the official ones in name only, apart from queries, keys and values that are stored one by one. Names are
those of the published ``facebook/mask2former-*`` files, which ``transformers`` reads and writes in every version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..data.label_spaces import CLASSES
from ..files import atomic_write, write_json

# (name there, name here); {i} and {j} are numbers, {i+1} the number plus one, {p} the rest of the name.
_PIXEL = "model.pixel_level_module.decoder."
_DECODER = "model.transformer_module."
_BACKBONE = "model.pixel_level_module.encoder."
_BLOCK = _BACKBONE + "encoder.layers.{i}.blocks.{j}."
_OUR_PIXEL = "sem_seg_head.pixel_decoder."
_OUR_DECODER = "sem_seg_head.predictor."
_COMMON = [
    (_PIXEL + "input_projections.{i}.{p}", _OUR_PIXEL + "input_proj.{i}.{p}"),
    (_PIXEL + "level_embed", _OUR_PIXEL + "transformer.level_embed"),
    (_PIXEL + "encoder.layers.{i}.self_attn.{p}", _OUR_PIXEL + "transformer.encoder.layers.{i}.self_attn.{p}"),
    (_PIXEL + "encoder.layers.{i}.self_attn_layer_norm.{p}", _OUR_PIXEL + "transformer.encoder.layers.{i}.norm1.{p}"),
    (_PIXEL + "encoder.layers.{i}.fc1.{p}", _OUR_PIXEL + "transformer.encoder.layers.{i}.linear1.{p}"),
    (_PIXEL + "encoder.layers.{i}.fc2.{p}", _OUR_PIXEL + "transformer.encoder.layers.{i}.linear2.{p}"),
    (_PIXEL + "encoder.layers.{i}.final_layer_norm.{p}", _OUR_PIXEL + "transformer.encoder.layers.{i}.norm2.{p}"),
    (_PIXEL + "mask_projection.{p}", _OUR_PIXEL + "mask_features.{p}"),
    (_PIXEL + "adapter_1.0.weight", _OUR_PIXEL + "adapter_1.weight"),
    (_PIXEL + "adapter_1.1.{p}", _OUR_PIXEL + "adapter_1.norm.{p}"),
    (_PIXEL + "layer_1.0.weight", _OUR_PIXEL + "layer_1.weight"),
    (_PIXEL + "layer_1.1.{p}", _OUR_PIXEL + "layer_1.norm.{p}"),
    (_DECODER + "queries_embedder.weight", _OUR_DECODER + "query_embed.weight"),
    (_DECODER + "queries_features.weight", _OUR_DECODER + "query_feat.weight"),
    (_DECODER + "level_embed.weight", _OUR_DECODER + "level_embed.weight"),
    (_DECODER + "input_projections.{i}.{p}", _OUR_DECODER + "input_proj.{i}.{p}"),
    (_DECODER + "decoder.layernorm.{p}", _OUR_DECODER + "decoder_norm.{p}"),
    (_DECODER + "decoder.mask_predictor.mask_embedder.{i}.0.{p}", _OUR_DECODER + "mask_embed.layers.{i}.{p}"),
    ("class_predictor.{p}", _OUR_DECODER + "class_embed.{p}"),
    ("criterion.empty_weight", "criterion.empty_weight"),
] + [
    (_DECODER + "decoder.layers.{i}." + there, _OUR_DECODER + here)
    for there, here in (
        ("cross_attn.{p}", "transformer_cross_attention_layers.{i}.multihead_attn.{p}"),
        ("cross_attn_layer_norm.{p}", "transformer_cross_attention_layers.{i}.norm.{p}"),
        ("self_attn.q_proj.{p}", "transformer_self_attention_layers.{i}.self_attn.in_proj_{p}"),
        ("self_attn.k_proj.{p}", "transformer_self_attention_layers.{i}.self_attn.in_proj_{p}"),
        ("self_attn.v_proj.{p}", "transformer_self_attention_layers.{i}.self_attn.in_proj_{p}"),
        ("self_attn.out_proj.{p}", "transformer_self_attention_layers.{i}.self_attn.out_proj.{p}"),
        ("self_attn_layer_norm.{p}", "transformer_self_attention_layers.{i}.norm.{p}"),
        ("fc1.{p}", "transformer_ffn_layers.{i}.linear1.{p}"),
        ("fc2.{p}", "transformer_ffn_layers.{i}.linear2.{p}"),
        ("final_layer_norm.{p}", "transformer_ffn_layers.{i}.norm.{p}"),
    )
]
_SWIN = [
    (_BACKBONE + "embeddings.patch_embeddings.projection.{p}", "backbone.patch_embed.proj.{p}"),
    (_BACKBONE + "embeddings.norm.{p}", "backbone.patch_embed.norm.{p}"),
    (_BLOCK + "layernorm_before.{p}", "backbone.layers.{i}.blocks.{j}.norm1.{p}"),
    (_BLOCK + "layernorm_after.{p}", "backbone.layers.{i}.blocks.{j}.norm2.{p}"),
    (_BLOCK + "attention.self.query.{p}", "backbone.layers.{i}.blocks.{j}.attn.qkv.{p}"),
    (_BLOCK + "attention.self.key.{p}", "backbone.layers.{i}.blocks.{j}.attn.qkv.{p}"),
    (_BLOCK + "attention.self.value.{p}", "backbone.layers.{i}.blocks.{j}.attn.qkv.{p}"),
    (
        _BLOCK + "attention.self.relative_position_bias_table",
        "backbone.layers.{i}.blocks.{j}.attn.relative_position_bias_table",
    ),
    (
        _BLOCK + "attention.self.relative_position_index",
        "backbone.layers.{i}.blocks.{j}.attn.relative_position_index",
    ),
    (_BLOCK + "attention.output.dense.{p}", "backbone.layers.{i}.blocks.{j}.attn.proj.{p}"),
    (_BLOCK + "intermediate.dense.{p}", "backbone.layers.{i}.blocks.{j}.mlp.fc1.{p}"),
    (_BLOCK + "output.dense.{p}", "backbone.layers.{i}.blocks.{j}.mlp.fc2.{p}"),
    (_BACKBONE + "encoder.layers.{i}.downsample.{p}", "backbone.layers.{i}.downsample.{p}"),
    (_BACKBONE + "hidden_states_norms.stage{i+1}.{p}", "backbone.norm{i}.{p}"),
]
_RESNET_LAYER = _BACKBONE + "encoder.stages.{i}.layers.{j}."
_RESNET = [
    (_BACKBONE + "embedder.embedder.convolution.weight", "backbone.stem.conv1.weight"),
    (_BACKBONE + "embedder.embedder.normalization.{p}", "backbone.stem.conv1.norm.{p}"),
    (_RESNET_LAYER + "shortcut.convolution.weight", "backbone.res{i+2}.{j}.shortcut.weight"),
    (_RESNET_LAYER + "shortcut.normalization.{p}", "backbone.res{i+2}.{j}.shortcut.norm.{p}"),
    (_RESNET_LAYER + "layer.{k}.convolution.weight", "backbone.res{i+2}.{j}.conv{k+1}.weight"),
    (_RESNET_LAYER + "layer.{k}.normalization.{p}", "backbone.res{i+2}.{j}.conv{k+1}.norm.{p}"),
]
_NOT_USED = re.compile(re.escape(_BACKBONE) + r"(swin\.)?layernorm\.(weight|bias)")  # of image classification

_RESNET_DEPTHS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
# key there -> (our key, default there); a config.json leaves out what is default.
_KEYS: dict[str, tuple[str, Any]] = {
    "feature_size": ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 256),
    "mask_feature_size": ("MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
    "encoder_layers": ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 6),
    "ignore_value": ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 255),
    "hidden_dim": ("MODEL.MASK_FORMER.HIDDEN_DIM", 256),
    "num_queries": ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100),
    "num_attention_heads": ("MODEL.MASK_FORMER.NHEADS", 8),
    "dim_feedforward": ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 2048),
    "decoder_layers": ("MODEL.MASK_FORMER.DEC_LAYERS", 10),
    "dropout": ("MODEL.MASK_FORMER.DROPOUT", 0.0),
    "pre_norm": ("MODEL.MASK_FORMER.PRE_NORM", False),
    "enforce_input_projection": ("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", False),
    "no_object_weight": ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.1),
    "class_weight": ("MODEL.MASK_FORMER.CLASS_WEIGHT", 2.0),
    "mask_weight": ("MODEL.MASK_FORMER.MASK_WEIGHT", 5.0),
    "dice_weight": ("MODEL.MASK_FORMER.DICE_WEIGHT", 5.0),
    "train_num_points": ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 12544),
    "oversample_ratio": ("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 3.0),
    "importance_sample_ratio": ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", 0.75),
}
_SWIN_KEYS: dict[str, tuple[str, Any]] = {
    "embed_dim": ("MODEL.SWIN.EMBED_DIM", 96),
    "depths": ("MODEL.SWIN.DEPTHS", [2, 2, 6, 2]),
    "num_heads": ("MODEL.SWIN.NUM_HEADS", [3, 6, 12, 24]),
    "window_size": ("MODEL.SWIN.WINDOW_SIZE", 7),
    "mlp_ratio": ("MODEL.SWIN.MLP_RATIO", 4.0),
    "qkv_bias": ("MODEL.SWIN.QKV_BIAS", True),
    "drop_path_rate": ("MODEL.SWIN.DROP_PATH_RATE", 0.1),
    "hidden_dropout_prob": ("MODEL.SWIN.DROP_RATE", 0.0),
    "attention_probs_dropout_prob": ("MODEL.SWIN.ATTN_DROP_RATE", 0.0),
    "image_size": ("MODEL.SWIN.PRETRAIN_IMG_SIZE", 224),
    "patch_size": ("MODEL.SWIN.PATCH_SIZE", 4),
}
_FIXED = {  # what every model here is
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "INPUT.FORMAT": "RGB",
}
_SHARED_CONDITIONS = {"activation_function": "relu", "encoder_feedforward_dim": 1024, "common_stride": 4}
_BACKBONE_CONDITIONS = {
    "swin": {"use_absolute_embeddings": False, "hidden_act": "gelu", "num_channels": 3},
    "resnet": {"hidden_act": "relu", "num_channels": 3, "downsample_in_first_stage": False},
}


class Converted(NamedTuple):
    """state: our state dict; settings: our config keys, dotted, that describe the model."""

    state: dict[str, Tensor]
    settings: dict[str, Any]


class _Rule(NamedTuple):
    """``pattern`` matches a whole name; the name in the other naming is built by ``rename``."""

    pattern: re.Pattern[str]
    offsets: dict[str, int]
    other: str
    part: int
    parts: int

    def rename(self, match: re.Match[str]) -> str:
        values = match.groupdict()
        numbers = {key: int(value) - self.offsets[key] for key, value in values.items() if key != "p"}

        def fill(field: re.Match[str]) -> str:
            if field[1] == "p":
                return values["p"]
            return str(numbers[field[1]] + int(field[2] or 0))

        return _FIELD.sub(fill, self.other)


_FIELD = re.compile(r"\{([ijkp])(?:\+(\d+))?\}")


def _rules(pairs: list[tuple[str, str]], reverse: bool) -> list[_Rule]:
    rules = []
    for index, (there, here) in enumerate(pairs):
        name, other = (here, there) if reverse else (there, here)
        same = [number for number, pair in enumerate(pairs) if pair[1] == here]
        pattern, offsets, last = "", {}, 0
        for field in _FIELD.finditer(name):
            group = r"(?P<p>.+)" if field[1] == "p" else rf"(?P<{field[1]}>\d+)"
            pattern += re.escape(name[last : field.start()]) + group
            offsets[field[1]] = int(field[2] or 0)
            last = field.end()
        pattern += re.escape(name[last:])
        rules.append(_Rule(re.compile(pattern), offsets, other, same.index(index), len(same)))
    return rules


def _pairs(backbone: str) -> list[tuple[str, str]]:
    return _COMMON + (_SWIN if backbone == "swin" else _RESNET)


def from_huggingface(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Converted:
    """A ``Mask2FormerForUniversalSegmentation`` as our state dict and the settings that build its model.

    Raises:
        ValueError: another kind of model, a variant that is not built here, or an entry without a counterpart.
    """
    settings = _settings(config, tensors)
    backbone = _backbone_type(config)
    rules = _rules(_pairs(backbone), reverse=False)
    parts: dict[str, dict[int, Tensor]] = {}
    wanted: dict[str, int] = {}
    for name, tensor in tensors.items():
        if _NOT_USED.fullmatch(name):
            continue
        match, rule = _match(rules, _published_name(name), name)
        ours = rule.rename(match)
        parts.setdefault(ours, {})[rule.part] = tensor
        wanted[ours] = rule.parts
    for ours, found in parts.items():
        if len(found) != wanted[ours]:
            raise ValueError(f"{ours} is made of {wanted[ours]} entries (query, key, value), the file has {len(found)}")
    state = {
        ours: torch.cat([found[i] for i in sorted(found)]) if len(found) > 1 else next(iter(found.values()))
        for ours, found in parts.items()
    }
    if backbone == "swin":
        index = _relative_position_index(settings["MODEL.SWIN.WINDOW_SIZE"])
        tables = [name for name in state if name.endswith("relative_position_bias_table")]
        state.update({name.replace("bias_table", "index"): index.clone() for name in tables})
    return Converted(state, settings)


def to_huggingface(cfg: CfgNode, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors) of the plain Mask2Former in ``state``; its estimator has no place there and stays behind.

    Raises:
        ValueError: a variant that ``transformers`` does not have, or an entry without a counterpart.
    """
    config = _config(cfg)
    rules = _rules(_pairs(config["backbone_config"]["model_type"]), reverse=True)
    tensors = {}
    for ours, tensor in state.items():
        if ours.startswith("transferability.") or ours.endswith("relative_position_index"):
            continue  # the index follows from the window size
        _, rule = _match(rules, ours, ours)
        chunks = tensor.chunk(rule.parts) if rule.parts > 1 else (tensor,)
        for other in rules:
            match = other.pattern.fullmatch(ours)
            if match is not None and other.parts == rule.parts:
                tensors[other.rename(match)] = chunks[other.part].contiguous()
    for name in [name for name in tensors if name.endswith("normalization.running_var")]:  # FrozenBN counts no batches
        tensors.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return config, tensors


def _match(rules: list[_Rule], name: str, given: str) -> tuple[re.Match[str], _Rule]:
    for rule in rules:
        match = rule.pattern.fullmatch(name)
        if match is not None:
            return match, rule
    raise ValueError(f"{given} has no counterpart: only Mask2Former with a Swin or ResNet backbone is converted")


def _published_name(name: str) -> str:
    """Names inside recent versions of ``transformers`` -> those of the files it writes."""
    name = name.replace(_BACKBONE + "swin.", _BACKBONE)
    if name.startswith(_BACKBONE):
        for new, published in (
            ("attention.q_proj", "attention.self.query"),
            ("attention.k_proj", "attention.self.key"),
            ("attention.v_proj", "attention.self.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("attention.relative_position_bias.relative", "attention.self.relative"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            name = name.replace(new, published)
    return name


def _relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) row of the bias table for each pair of positions in a window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


def _backbone_type(config: Mapping[str, Any]) -> str:
    if config.get("model_type") != "mask2former":
        raise ValueError(f"config.json: model_type is {config.get('model_type')!r}, not 'mask2former'")
    kind = (config.get("backbone_config") or {"model_type": "swin"}).get("model_type")
    if kind not in _BACKBONE_CONDITIONS:
        raise ValueError(f"config.json: the backbone is {kind!r}: only swin and resnet are converted")
    return kind


def _settings(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    kind = _backbone_type(config)
    backbone = config.get("backbone_config") or {}
    for where, conditions in ((config, _SHARED_CONDITIONS), (backbone, _BACKBONE_CONDITIONS[kind])):
        for key, value in conditions.items():
            if where.get(key, value) != value:
                raise ValueError(f"config.json: {key} is {where[key]!r}: only {value!r} is built here")
    if "class_predictor.weight" not in tensors:
        raise ValueError("class_predictor.weight is missing: take a Mask2FormerForUniversalSegmentation")
    settings: dict[str, Any] = dict(_FIXED)
    settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = len(tensors["class_predictor.weight"]) - 1
    settings.update({ours: config.get(key, default) for key, (ours, default) in _KEYS.items()})
    if kind == "swin":
        settings["MODEL.BACKBONE.NAME"] = "D2SwinTransformer"
        settings.update({ours: backbone.get(key, default) for key, (ours, default) in _SWIN_KEYS.items()})
        return settings
    layer_type, depths = backbone.get("layer_type", "bottleneck"), tuple(backbone.get("depths", (3, 4, 6, 3)))
    sizes = backbone.get("hidden_sizes", [256, 512, 1024, 2048])
    doubling = sizes == [sizes[0] * 2**i for i in range(4)] and (layer_type == "bottleneck" or sizes[0] == 64)
    if (layer_type, depths) not in _RESNET_DEPTHS or not doubling:
        raise ValueError(f"config.json: no ResNet of Detectron2 has {layer_type} layers {depths} of sizes {sizes}")
    return settings | {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": _RESNET_DEPTHS[layer_type, depths],
        "MODEL.RESNETS.STEM_OUT_CHANNELS": backbone.get("embedding_size", 64),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": sizes[0],
        "MODEL.RESNETS.WIDTH_PER_GROUP": sizes[0] // 4 if layer_type == "bottleneck" else 64,
        "MODEL.RESNETS.STRIDE_IN_1X1": bool(backbone.get("downsample_in_bottleneck", False)),
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.NORM": "BN",
    }


def _config(cfg: CfgNode) -> dict[str, Any]:
    """Our config as config.json of ``transformers``."""
    for key, value in {**_FIXED, "MODEL.TMT.MASK_RULE": "foreground", "MODEL.TMT.LAMBDA_M": 0.5}.items():
        found = _get(cfg, key)
        if found != value and key not in ("MODEL.META_ARCHITECTURE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
            raise ValueError(f"{key} is {found!r}: transformers' Mask2Former is always {value!r}")
    features = ["stage1", "stage2", "stage3", "stage4"]
    name = cfg.MODEL.BACKBONE.NAME
    backbone: dict[str, Any]
    if name == "D2SwinTransformer":
        if cfg.MODEL.SWIN.APE or not cfg.MODEL.SWIN.PATCH_NORM or cfg.MODEL.SWIN.QK_SCALE is not None:
            raise ValueError("MODEL.SWIN: APE, QK_SCALE and PATCH_NORM False have no counterpart in transformers")
        backbone = {key: _get(cfg, ours) for key, (ours, _) in _SWIN_KEYS.items()}
        backbone |= {"model_type": "swin", "hidden_size": 8 * cfg.MODEL.SWIN.EMBED_DIM, "out_features": features}
    elif name == "build_resnet_backbone":
        resnets = cfg.MODEL.RESNETS
        found = [key for key, depth in _RESNET_DEPTHS.items() if depth == resnets.DEPTH]
        narrow = resnets.DEPTH > 34 and 4 * resnets.WIDTH_PER_GROUP != resnets.RES2_OUT_CHANNELS
        if not found or resnets.NUM_GROUPS != 1 or narrow:
            raise ValueError("MODEL.RESNETS: no ResNet of transformers has this depth and these widths")
        (layer_type, depths) = found[0]
        backbone = {
            "model_type": "resnet",
            "layer_type": layer_type,
            "depths": list(depths),
            "embedding_size": resnets.STEM_OUT_CHANNELS,
            "hidden_sizes": [resnets.RES2_OUT_CHANNELS * 2**i for i in range(4)],
            "downsample_in_bottleneck": resnets.STRIDE_IN_1X1,
            "out_features": features,
        }
    else:
        raise ValueError(f"MODEL.BACKBONE.NAME is {name!r}: only Swin and ResNet are converted")
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names = CLASSES if count == len(CLASSES) else [f"LABEL_{i}" for i in range(count)]
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": backbone,
        "id2label": {str(i): label for i, label in enumerate(names)},
        "label2id": {label: i for i, label in enumerate(names)},
        **{key: _get(cfg, ours) for key, (ours, _) in _KEYS.items()},
        **_SHARED_CONDITIONS,
    }


def _get(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def read_huggingface(source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a local folder, or of a name on the hub, which is downloaded.

    Raises:
        FileNotFoundError: no such folder or hub name, or no config.json or safetensors in it.
        ValueError: a file cannot be read. ImportError: safetensors or huggingface_hub is not installed.
    """
    from safetensors import SafetensorError  # optional: pip install "tmt_d2[hf]"
    from safetensors.torch import load_file

    folder = Path(source)
    if not folder.is_dir():
        folder = _download(source)
    files = sorted(folder.glob("model*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise FileNotFoundError(f"{source} holds no config.json with model*.safetensors")
    tensors: dict[str, Tensor] = {}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for file in files:
            tensors.update(load_file(file))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{source} cannot be read: {' '.join(str(error).split())}") from error
    return config, tensors


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name} is neither a folder nor a name on the hub (owner/model)")
    from huggingface_hub import snapshot_download  # optional: pip install "tmt_d2[hf]"

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model*.safetensors"]))
    except Exception as error:  # a dozen kinds, of the library and of the network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"{name} is no folder here and cannot be had from the hub: {reason}") from error


def write_huggingface(cfg: CfgNode, state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json to ``folder``, each atomically.

    Raises: as ``to_huggingface``.
    """
    from safetensors.torch import save  # optional: pip install "tmt_d2[hf]"

    config, tensors = to_huggingface(cfg, state)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.safetensors") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", config)
    processor = {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        "size_divisor": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
    }
    write_json(folder / "preprocessor_config.json", processor)
