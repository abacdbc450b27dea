"""What a config may say: values that would only fail, or mislead, after training began are refused before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from tmt_d2.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Range:
    """Numbers between ``low`` and ``high``; of a list each of them, and ``count`` where that is not 0."""

    low: float
    high: float = math.inf
    above: bool = False  # without ``low`` itself
    below: bool = True  # without ``high`` itself
    count: int = 0
    whole: bool = False

    def admits(self, value: Any) -> bool:
        values = value if isinstance(value, (list, tuple)) else [value]
        return len(values) == (self.count or max(len(values), 1)) and all(map(self._admits, values))

    def _admits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        low = self.low < value if self.above else self.low <= value
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        many = f"{self.count} numbers, each " if self.count else ""
        if math.isinf(self.high):
            return f"{many}{'above' if self.above else 'at least'} {self.low:g}"
        return f"{many}in {'(['[not self.above]}{self.low:g}, {self.high:g}{')]'[not self.below]}"


NONNEGATIVE, POSITIVE, COUNT = Range(0), Range(0, above=True), Range(1, whole=True)
SHARE, RATE = Range(0, 1, below=False), Range(0, 1)
PART = Range(0, 1, above=True, below=False)
INFINITE = Range(0, math.inf, below=False)
SIZES = Range(1, count=2, whole=True)

# Every number that is read, in Detectron2's sections as in the project's own.
RANGES: dict[str, Range] = {
    "SEED": Range(-(2**31), 2**31),
    "SOLVER.BASE_LR": NONNEGATIVE,
    "SOLVER.BASE_LR_END": NONNEGATIVE,
    "SOLVER.MAX_ITER": COUNT,
    "SOLVER.IMS_PER_BATCH": COUNT,
    "SOLVER.ACCUMULATION_STEPS": COUNT,
    "SOLVER.CHECKPOINTS_KEPT": COUNT,
    "SOLVER.CHECKPOINT_PERIOD": NONNEGATIVE,
    "SOLVER.MOMENTUM": RATE,
    "SOLVER.WEIGHT_DECAY": NONNEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": NONNEGATIVE,
    "SOLVER.WEIGHT_DECAY_EMBED": NONNEGATIVE,
    "SOLVER.BACKBONE_MULTIPLIER": NONNEGATIVE,
    "SOLVER.LAYER_DECAY": PART,
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": NONNEGATIVE,
    "SOLVER.POLY_LR_POWER": NONNEGATIVE,
    "SOLVER.GAMMA": PART,
    "SOLVER.NUM_DECAYS": COUNT,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Range(0, math.inf, above=True, below=False),
    "DATALOADER.NUM_WORKERS": NONNEGATIVE,
    "DATALOADER.MAX_BAD_FRACTION": SHARE,
    "INPUT.MIN_SIZE_TRAIN": Range(0, whole=True),
    "INPUT.MAX_SIZE_TRAIN": COUNT,
    "INPUT.MIN_SIZE_TEST": NONNEGATIVE,
    "INPUT.MAX_SIZE_TEST": COUNT,
    "INPUT.CROP.SIZE": Range(0, above=True, count=2),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": PART,
    "INPUT.SIZE_DIVISIBILITY": Range(-1),
    "TEST.EVAL_PERIOD": NONNEGATIVE,
    "TEST.BEST.PATIENCE": NONNEGATIVE,
    "LOGGING.IMAGES": NONNEGATIVE,
    "TEST.SLIDING_WINDOW.SIZE": SIZES,
    "TEST.SLIDING_WINDOW.STRIDE": SIZES,
    "TEST.AUG.MIN_SIZES": COUNT,
    "TEST.AUG.MAX_SIZE": COUNT,
    "MODEL.PIXEL_MEAN": Range(-math.inf, count=3, above=True),
    "MODEL.PIXEL_STD": Range(0, count=3, above=True),
    "MODEL.BACKBONE.FREEZE_AT": NONNEGATIVE,
    "MODEL.RESNETS.NUM_GROUPS": COUNT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": COUNT,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": COUNT,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": Range(1, 255, below=False),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": Range(0, 255, below=False),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": COUNT,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": COUNT,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": NONNEGATIVE,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": COUNT,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": NONNEGATIVE,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": NONNEGATIVE,
    "MODEL.MASK_FORMER.DICE_WEIGHT": NONNEGATIVE,
    "MODEL.MASK_FORMER.MASK_WEIGHT": NONNEGATIVE,
    "MODEL.MASK_FORMER.NHEADS": COUNT,
    "MODEL.MASK_FORMER.DROPOUT": RATE,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": COUNT,
    "MODEL.MASK_FORMER.DEC_LAYERS": COUNT,
    "MODEL.MASK_FORMER.HIDDEN_DIM": COUNT,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": COUNT,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": Range(-1),
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": COUNT,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": Range(1),
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": SHARE,
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": COUNT,
    "MODEL.SWIN.PATCH_SIZE": COUNT,
    "MODEL.SWIN.EMBED_DIM": COUNT,
    "MODEL.SWIN.DEPTHS": COUNT,
    "MODEL.SWIN.NUM_HEADS": COUNT,
    "MODEL.SWIN.WINDOW_SIZE": COUNT,
    "MODEL.SWIN.MLP_RATIO": POSITIVE,
    "MODEL.SWIN.DROP_RATE": RATE,
    "MODEL.SWIN.ATTN_DROP_RATE": RATE,
    "MODEL.SWIN.DROP_PATH_RATE": RATE,
    "MODEL.TIMM.DROP_PATH_RATE": RATE,
    "MODEL.TIMM.LORA_RANK": NONNEGATIVE,
    "MODEL.TIMM.PYRAMID_CHANNELS": COUNT,
    "MODEL.TMT.CELL_SIZES": Range(1, count=3, whole=True),
    "MODEL.TMT.ITERATIONS": NONNEGATIVE,
    "MODEL.TMT.KAPPA": NONNEGATIVE,
    "MODEL.TMT.DISCRIMINATOR.HIDDEN_DIM": NONNEGATIVE,
    "MODEL.TMT.P_T": RATE,
    "MODEL.TMT.LAMBDA_M": Range(0, 1, above=True),
    "TRANSFER.LABEL_FRACTION": PART,
    "TRANSFER.LABEL_COUNT": NONNEGATIVE,
    "TRANSFER.LABEL_SEED": Range(-1),
    "TRANSFER.DRIFT_IMAGES": NONNEGATIVE,
    "TRANSFER.ESTIMATOR.TARGET_ERROR": Range(0, 0.5),
    "TRANSFER.ESTIMATOR.HELD_OUT": COUNT,
    "TRANSFER.ALIGNMENT.ITERATIONS": NONNEGATIVE,
    "TRANSFER.ALIGNMENT.BASE_LR": NONNEGATIVE,
    "TRANSFER.ALIGNMENT.WEIGHT": PART,
    "TRANSFER.ALIGNMENT.PIXELS": COUNT,
    "TRANSFER.ALIGNMENT.EPSILON": POSITIVE,
    "TRANSFER.ALIGNMENT.SINKHORN_ITERATIONS": COUNT,
}
_TRAINING = {
    NONNEGATIVE: "LABELED_RATIO UNLABELED_RATIO SOURCE_RATIO PSEUDO_LABEL_WEIGHT COLOR_JITTER_STRENGTH "
    "MIC_WEIGHT RARE_CLASS_TEMPERATURE FEATURE_DISTANCE_WEIGHT",
    SHARE: "EMA_MOMENTUM BURN_IN WARM_UP COLOR_JITTER_PROB BLUR_PROB CONFIDENCE_THRESHOLD "
    "MIC_MASK_RATIO MIC_BLOCK_SIZE FDA_BETA RARE_CLASS_AREA",
}
RANGES |= {f"SELF_TRAINING.{key}": each for each, keys in _TRAINING.items() for key in keys.split()}

CHOICES: dict[str, Sequence[Any]] = {
    "SELF_TRAINING.MIX": ("classmix", "none"),
    "SELF_TRAINING.WEIGHT_BY": ("none", "pixel", "image"),
    "MODEL.TMT.MASK_RULE": ("foreground", "uncertain"),
    "MODEL.TMT.REGIONS": ("adaptive", "square"),
    "MODEL.TMT.FEATURES": ("source", "live"),
    "MODEL.TMT.ATTENTION": ("hard", "off"),
    "MODEL.TMT.RANK_BY": ("T", "random", "inverted"),
    "MODEL.MASK_FORMER.IGNORED_PIXELS": ("background", "ignore"),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.OPTIMIZER": ("ADAMW", "SGD"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "TEST.PRECISION": ("float32", "bfloat16"),
}  # fmt: skip
REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}


def check_cfg(cfg: CfgNode) -> None:
    """Raise a UserError that names the key for values that would only fail (or mislead) after training began."""
    for key, registry in REGISTRIES.items():
        if value_of(cfg, key) not in registry:
            raise UserError(f"{key} is {value_of(cfg, key)!r}, which is not built here: see configs/ for what is")
    for key, choices in CHOICES.items():
        if (value := value_of(cfg, key)) not in choices:
            hint = did_you_mean(str(value), map(str, choices))
            raise UserError(f"{key} is {value!r}: choose one of {', '.join(map(str, choices))}{hint}")
    for key, allowed in RANGES.items():
        if not allowed.admits(value := value_of(cfg, key)):
            raise UserError(f"{key} is {value}: it must be {allowed}")
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: choose cuda, cuda:1 or cpu") from error
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.TYPE != "absolute":
        raise UserError(f"INPUT.CROP.TYPE is {crop.TYPE!r}: only 'absolute' crops are built")
    if crop.ENABLED and not SIZES.admits(crop.SIZE):
        raise UserError(f"INPUT.CROP.SIZE is {crop.SIZE}: it must be {SIZES}, height and width in pixels")
    former = cfg.MODEL.MASK_FORMER
    if former.HIDDEN_DIM % former.NHEADS:
        raise UserError(
            f"MODEL.MASK_FORMER.HIDDEN_DIM is {former.HIDDEN_DIM}: it must be a multiple of NHEADS, {former.NHEADS}"
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NORM == "GN" and head.CONVS_DIM % 32:
        raise UserError(f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM}: with NORM GN it must be a multiple of 32")


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key with dots in it."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node
