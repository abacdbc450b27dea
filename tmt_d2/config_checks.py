"""What a config may say: values that would only fail, or mislead, after training began are refused before it."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from tmt_d2.errors import UserError, did_you_mean

STAGES = ("source", "estimator", "finetune")
MASK_RULES = ("foreground", "uncertain")
REGIONS = ("adaptive", "square")
ACTE_FEATURES = ("source", "live")
ATTENTIONS = ("hard", "soft", "off")
RANKINGS = ("T", "random", "inverted")
IGNORED_PIXELS = ("background", "ignore")
PRECISIONS = ("float32", "bfloat16")
AMP_DTYPES = ("float16", "bfloat16")
MIXES = ("classmix", "none")
PSEUDO_WEIGHTS = ("nothing", "confident", "picture", "T", "1-T")


def check_cfg(cfg: CfgNode) -> None:
    """Raise a UserError that names the key for values that would only fail (or mislead) after training began."""
    tmt, transfer = cfg.MODEL.TMT, cfg.TRANSFER
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
    ):
        if name not in registry:
            raise UserError(f"{key} is {name!r}, which is not built here: see configs/ for what is")
    _check_choice("TRANSFER.STAGE", transfer.STAGE, STAGES)
    _check_choice("MODEL.TMT.MASK_RULE", tmt.MASK_RULE, MASK_RULES)
    _check_choice("MODEL.TMT.REGIONS", tmt.REGIONS, REGIONS)
    _check_choice("MODEL.TMT.FEATURES", tmt.FEATURES, ACTE_FEATURES)
    _check_choice("MODEL.TMT.ATTENTION", tmt.ATTENTION, ATTENTIONS)
    _check_choice("MODEL.TMT.RANK_BY", tmt.RANK_BY, RANKINGS)
    _check_choice("MODEL.MASK_FORMER.IGNORED_PIXELS", cfg.MODEL.MASK_FORMER.IGNORED_PIXELS, IGNORED_PIXELS)
    _check_choice("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, AMP_DTYPES)
    _check_choice("TEST.PRECISION", cfg.TEST.PRECISION, PRECISIONS)
    for key in ("ACCUMULATION_STEPS", "CHECKPOINTS_KEPT"):
        if cfg.SOLVER[key] < 1:
            raise UserError(f"SOLVER.{key} is {cfg.SOLVER[key]}: it must be at least 1")
    if not 0 < cfg.SOLVER.LAYER_DECAY <= 1:
        raise UserError(f"SOLVER.LAYER_DECAY is {cfg.SOLVER.LAYER_DECAY}: it must be in (0, 1]")
    if cfg.MODEL.TIMM.LORA_RANK < 0:
        raise UserError(f"MODEL.TIMM.LORA_RANK is {cfg.MODEL.TIMM.LORA_RANK}: it must be >= 0")
    if not 0 <= cfg.DATALOADER.MAX_BAD_FRACTION <= 1:
        raise UserError(f"DATALOADER.MAX_BAD_FRACTION is {cfg.DATALOADER.MAX_BAD_FRACTION}: it must be in [0, 1]")
    if not 0 <= tmt.P_T < 1:
        raise UserError(f"MODEL.TMT.P_T is {tmt.P_T}: it is the excluded fraction of positions, so 0 <= P_T < 1")
    if not 0 < tmt.LAMBDA_M < 1:
        raise UserError(f"MODEL.TMT.LAMBDA_M is {tmt.LAMBDA_M}: it is a probability strictly between 0 and 1")
    if tmt.SOFT_STRENGTH < 0:
        raise UserError(f"MODEL.TMT.SOFT_STRENGTH is {tmt.SOFT_STRENGTH}: it must be >= 0")
    alignment = transfer.ALIGNMENT
    if not 0 < alignment.WEIGHT <= 1:
        raise UserError(f"TRANSFER.ALIGNMENT.WEIGHT is {alignment.WEIGHT}: it must be in (0, 1]")
    if alignment.EPSILON <= 0:
        raise UserError(f"TRANSFER.ALIGNMENT.EPSILON is {alignment.EPSILON}: it must be above 0")
    for key, least in (("ITERATIONS", 0), ("PIXELS", 1), ("SINKHORN_ITERATIONS", 1)):
        if alignment[key] < least:
            raise UserError(f"TRANSFER.ALIGNMENT.{key} is {alignment[key]}: it must be at least {least}")
    for key, value, least in (
        ("ESTIMATOR.HELD_OUT", transfer.ESTIMATOR.HELD_OUT, 1),
        ("DRIFT_IMAGES", transfer.DRIFT_IMAGES, 0),
    ):
        if value < least:
            raise UserError(f"TRANSFER.{key} is {value}: it must be at least {least}")
    if not 0 < transfer.LABEL_FRACTION <= 1:
        raise UserError(f"TRANSFER.LABEL_FRACTION is {transfer.LABEL_FRACTION}: it must be in (0, 1]")
    if transfer.LABEL_COUNT < 0:
        raise UserError(f"TRANSFER.LABEL_COUNT is {transfer.LABEL_COUNT}: it must be at least 0")
    training = transfer.SELF_TRAINING
    _check_choice("TRANSFER.SELF_TRAINING.MIX", training.MIX, MIXES)
    _check_choice("TRANSFER.SELF_TRAINING.WEIGHT_BY", training.WEIGHT_BY, PSEUDO_WEIGHTS)
    shares = ("EMA", "BURN_IN", "WARM_UP", "COLOUR", "BLUR", "THRESHOLD", "QUANTILE", "PRECISION", "MASK_RATIO")
    for key in (*shares, "MASK_BLOCK", "FDA_BETA", "RARE_CLASS_AREA"):
        if not 0 <= training[key] <= 1:
            raise UserError(f"TRANSFER.SELF_TRAINING.{key} is {training[key]}: it must be in [0, 1]")
    for key in ("WEIGHT", "COLOUR_STRENGTH", "MASKED_WEIGHT", "RARE_CLASSES", "FEATURE_DISTANCE"):
        if training[key] < 0:
            raise UserError(f"TRANSFER.SELF_TRAINING.{key} is {training[key]}: it must be at least 0")
    if not 0 <= transfer.ESTIMATOR.TARGET_ERROR < 0.5:
        raise UserError(f"TRANSFER.ESTIMATOR.TARGET_ERROR is {transfer.ESTIMATOR.TARGET_ERROR}: it must be in [0, 0.5)")
    for key, value in (
        ("ITERATIONS", tmt.ITERATIONS),
        ("KAPPA", tmt.KAPPA),
        ("DISCRIMINATOR.HIDDEN_DIM", tmt.DISCRIMINATOR.HIDDEN_DIM),
    ):
        if not value >= 0:
            raise UserError(f"MODEL.TMT.{key} is {value}: it must be >= 0")
    if len(tmt.CELL_SIZES) != 3 or any(type(size) is not int or size < 1 for size in tmt.CELL_SIZES):
        raise UserError(f"MODEL.TMT.CELL_SIZES is {tmt.CELL_SIZES}: it needs 3 whole numbers >= 1, one per level")


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{key} is {value!r}: choose one of {', '.join(choices)}{did_you_mean(str(value), choices)}")
