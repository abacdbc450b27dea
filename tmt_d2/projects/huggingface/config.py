"""config.json and preprocessor_config.json of Hugging Face's Mask2Former <-> our config keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from tmt_d2.config import get_key
from tmt_d2.data.class_lists import MAX_CLASSES, ClassList
from tmt_d2.data.datasets.label_spaces import CLASSES, class_list
from tmt_d2.errors import UserError

# Key there: (our key, default there); a config.json leaves out defaults.
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
_RESNET_DEPTHS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
_FIXED = {  # settings of every model there
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


def backbone_type(config: Mapping[str, Any]) -> str:
    """Return "swin" or "resnet".

    Raises:
        UserError: another model, or another backbone.
    """
    model_type = config.get("model_type")
    if model_type != "mask2former":
        raise UserError("only 'mask2former' is converted", key="config.json: model_type", value=model_type)
    kind = (config.get("backbone_config") or {"model_type": "swin"}).get("model_type")
    if kind not in _BACKBONE_CONDITIONS:
        raise UserError("only swin and resnet are converted", key="config.json: backbone_config.model_type", value=kind)
    return kind


def settings_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our keys, dotted, for the model of a config.json, without the number of classes.

    Raises:
        UserError: another kind of model, or a variant that cannot be built here.
    """
    kind = backbone_type(config)
    backbone = config.get("backbone_config") or {}
    for node, conditions in ((config, _SHARED_CONDITIONS), (backbone, _BACKBONE_CONDITIONS[kind])):
        for key, value in conditions.items():
            if node.get(key, value) != value:
                raise UserError(f"only {value!r} is converted", key=f"config.json: {key}", value=node[key])
    return {
        **_FIXED,
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        **{ours: config.get(key, default) for key, (ours, default) in _KEYS.items()},
        **(_swin_settings(backbone) if kind == "swin" else _resnet_settings(backbone)),
    }


def _swin_settings(backbone: Mapping[str, Any]) -> dict[str, Any]:
    settings = {ours: backbone.get(key, default) for key, (ours, default) in _SWIN_KEYS.items()}
    return {"MODEL.BACKBONE.NAME": "D2SwinTransformer", **settings}


def _resnet_settings(backbone: Mapping[str, Any]) -> dict[str, Any]:
    layer_type, depths = backbone.get("layer_type", "bottleneck"), tuple(backbone.get("depths", (3, 4, 6, 3)))
    sizes = backbone.get("hidden_sizes", [256, 512, 1024, 2048])
    doubling = sizes == [sizes[0] * 2**i for i in range(4)] and (layer_type == "bottleneck" or sizes[0] == 64)
    if (layer_type, depths) not in _RESNET_DEPTHS or not doubling:
        variant = f"{layer_type} layers {depths} of sizes {sizes}"
        raise UserError("no such ResNet in Detectron2", key="config.json: backbone_config", value=variant)
    return {
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


def config_of(cfg: CfgNode, classes: ClassList | None = None) -> dict[str, Any]:
    """Return our config as config.json.

    Args:
        classes: of the checkpoint, if it has them.

    Raises:
        UserError: a variant that ``transformers`` does not have.
    """
    for key, value in {**_FIXED, "MODEL.TMT.MASK_RULE": "foreground", "MODEL.TMT.LAMBDA_M": 0.5}.items():
        if get_key(cfg, key) != value:
            raise UserError(f"transformers' Mask2Former always has {value!r}", key=key, value=get_key(cfg, key))
    backbones = {"D2SwinTransformer": _swin_config, "build_resnet_backbone": _resnet_config}
    name = cfg.MODEL.BACKBONE.NAME
    if name not in backbones:
        raise UserError("only Swin and ResNet are converted", key="MODEL.BACKBONE.NAME", value=name)
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names: Sequence[str] = CLASSES if count == len(CLASSES) else [f"LABEL_{i}" for i in range(count)]
    if classes is not None:
        names = classes.names
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": backbones[name](cfg) | {"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        "id2label": {str(i): label for i, label in enumerate(names)},
        "label2id": {label: i for i, label in enumerate(names)},
        **{key: get_key(cfg, ours) for key, (ours, _) in _KEYS.items()},
        **_SHARED_CONDITIONS,
    }


def classes_of(config: Mapping[str, Any], count: int) -> ClassList | None:
    """Return the classes that ``id2label`` names; names of the 19 have their colors.

    Returns:
        None if these are not ``count`` different names, or placeholders (LABEL_0, ...).
    """
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or set(labels) != {str(i) for i in range(count)} or count > MAX_CLASSES:
        return None
    names = [labels[str(i)] for i in range(count)]
    if not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) != count:
        return None
    return None if names == [f"LABEL_{i}" for i in range(count)] else class_list(names, {})


def _swin_config(cfg: CfgNode) -> dict[str, Any]:
    swin = cfg.MODEL.SWIN
    for key, value in {"APE": False, "PATCH_NORM": True, "QK_SCALE": None}.items():
        if swin[key] != value:
            raise UserError(f"transformers' Swin always has {value!r}", key=f"MODEL.SWIN.{key}", value=swin[key])
    config = {key: get_key(cfg, ours) for key, (ours, _) in _SWIN_KEYS.items()}
    return {**config, "model_type": "swin", "hidden_size": 8 * swin.EMBED_DIM}


def _resnet_config(cfg: CfgNode) -> dict[str, Any]:
    resnets = cfg.MODEL.RESNETS
    variants = {depth: variant for variant, depth in _RESNET_DEPTHS.items()}
    narrow = resnets.DEPTH > 34 and 4 * resnets.WIDTH_PER_GROUP != resnets.RES2_OUT_CHANNELS
    if resnets.DEPTH not in variants or resnets.NUM_GROUPS != 1 or narrow:
        raise UserError("no ResNet of transformers has this depth and these widths", key="MODEL.RESNETS")
    layer_type, depths = variants[resnets.DEPTH]
    return {
        "model_type": "resnet",
        "layer_type": layer_type,
        "depths": list(depths),
        "embedding_size": resnets.STEM_OUT_CHANNELS,
        "hidden_sizes": [resnets.RES2_OUT_CHANNELS * 2**i for i in range(4)],
        "downsample_in_bottleneck": resnets.STRIDE_IN_1X1,
    }


def settings_of_processor(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return our keys, dotted, for a preprocessor_config.json; missing values have the defaults of ``transformers``.

    Returns:
        without INPUT.MIN_SIZE_TEST if the processor resizes images to one height and width, which is not possible here.

    Raises:
        UserError: a value of the wrong type.
    """
    try:
        scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
        mean, std = [0.0] * 3, [1.0] * 3
        if processor.get("do_normalize", True):
            mean = processor.get("image_mean", [0.485, 0.456, 0.406])
            std = processor.get("image_std", [0.229, 0.224, 0.225])
        settings: dict[str, Any] = {
            "MODEL.PIXEL_MEAN": [round(value / scale, 4) for value in mean],
            "MODEL.PIXEL_STD": [round(value / scale, 4) for value in std],
            "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": int(processor.get("size_divisor", 32)) or 32,
        }
        size = processor.get("size", 800)
        if isinstance(size, int):  # as old versions write it
            size = {"shortest_edge": size}
        if not processor.get("do_resize", True):
            settings["INPUT.MIN_SIZE_TEST"] = 0
        elif "shortest_edge" in size:
            longest = size.get("longest_edge", processor.get("max_size", processor.get("_max_size", 1333)))
            settings |= {"INPUT.MIN_SIZE_TEST": int(size["shortest_edge"]), "INPUT.MAX_SIZE_TEST": int(longest)}
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(str(error), key="preprocessor_config.json") from error
    return settings


def processor_of(cfg: CfgNode) -> dict[str, Any]:
    """Return preprocessor_config.json: images are resized and normalized as in testing here.

    Where an edge is then no multiple of ``size_divisor``, ``transformers`` stretches the image; this project pads.
    """
    shortest = cfg.INPUT.MIN_SIZE_TEST
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": shortest > 0,  # at 0 images keep their size
        "size": {"shortest_edge": shortest or cfg.INPUT.MAX_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        "size_divisor": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
    }
