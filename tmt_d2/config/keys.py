"""Every config key that this project adds to Detectron2's, with its default, allowed values and description.

``DEEPLAB`` and ``MASK2FORMER`` hold the official keys with the official defaults, so official YAML files merge
unchanged. ``OWN`` holds the project's own keys; docs/config.md is made from it. Symbols and equation numbers are those
of arXiv 2504.05774. ``DETECTRON2`` holds allowed values of keys that Detectron2 declares.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from tmt_d2.config.access import set_key
from tmt_d2.config.ranges import COUNT, NONNEGATIVE, PART, POSITIVE, RATE, SHARE, SIZES, Range

Allowed = Any  # a Range, a Registered or a tuple of values


@dataclass(frozen=True)
class Registered:
    """Names in a registry of ``detectron2.modeling``, which is imported when a value is checked: it takes seconds.

    Attributes:
        registry: such as META_ARCH_REGISTRY.
    """

    registry: str

    def __iter__(self) -> Iterator[str]:
        registry = getattr(importlib.import_module("detectron2.modeling"), self.registry)
        return (name for name, _ in registry)


class Key(NamedTuple):
    """A config key.

    Attributes:
        allowed: a range or a tuple of values; None: every value of the default's type.
        about: description.
    """

    default: Any
    allowed: Allowed | None = None
    about: str = ""


def section(prefix: str, **keys: Key) -> dict[str, Key]:
    """Return keys by their full names, PREFIX.NAME."""
    return {f"{prefix}.{name}": key for name, key in keys.items()}


DEEPLAB: dict[str, Key] = {  # as ``add_deeplab_config``, whose package imports models; official configs set them
    **section("INPUT.CROP", SINGLE_CATEGORY_MAX_AREA=Key(1.0, PART)),
    **section("SOLVER", POLY_LR_POWER=Key(0.9, NONNEGATIVE), POLY_LR_CONSTANT_ENDING=Key(0.0)),
    **section(
        "MODEL.SEM_SEG_HEAD",
        LOSS_TYPE=Key("hard_pixel_mining"),
        PROJECT_FEATURES=Key(["res2"]),
        PROJECT_CHANNELS=Key([48]),
        ASPP_CHANNELS=Key(256),
        ASPP_DILATIONS=Key([6, 12, 18]),
        ASPP_DROPOUT=Key(0.1),
        USE_DEPTHWISE_SEPARABLE_CONV=Key(False),
    ),
    **section("MODEL.RESNETS", RES4_DILATION=Key(1), RES5_MULTI_GRID=Key([1, 2, 4]), STEM_TYPE=Key("deeplab")),
}

MASK2FORMER: dict[str, Key] = {
    **section(
        "INPUT",
        DATASET_MAPPER_NAME=Key("mask_former_semantic"),
        COLOR_AUG_SSD=Key(False),
        SIZE_DIVISIBILITY=Key(-1, Range(-1)),
        IMAGE_SIZE=Key(1024),
        MIN_SCALE=Key(0.1),
        MAX_SCALE=Key(2.0),
    ),
    **section(
        "SOLVER",
        WEIGHT_DECAY_EMBED=Key(0.0, NONNEGATIVE),
        OPTIMIZER=Key("ADAMW", ("ADAMW", "SGD")),
        BACKBONE_MULTIPLIER=Key(0.1, NONNEGATIVE),
    ),
    **section(
        "MODEL.MASK_FORMER",
        DEEP_SUPERVISION=Key(True),
        NO_OBJECT_WEIGHT=Key(0.1, NONNEGATIVE),
        CLASS_WEIGHT=Key(1.0, NONNEGATIVE),
        DICE_WEIGHT=Key(1.0, NONNEGATIVE),
        MASK_WEIGHT=Key(20.0, NONNEGATIVE),
        NHEADS=Key(8, COUNT),
        DROPOUT=Key(0.1, RATE),
        DIM_FEEDFORWARD=Key(2048, COUNT),
        ENC_LAYERS=Key(0),
        DEC_LAYERS=Key(6, COUNT, "decoder layers + 1, because the queries are supervised before layer 1 too"),
        PRE_NORM=Key(False),
        HIDDEN_DIM=Key(256, COUNT),
        NUM_OBJECT_QUERIES=Key(100, COUNT),
        TRANSFORMER_IN_FEATURE=Key("res5"),
        TRANSFORMER_DECODER_NAME=Key("MultiScaleMaskedTransformerDecoder"),
        ENFORCE_INPUT_PROJ=Key(False),
        SIZE_DIVISIBILITY=Key(32, Range(-1)),
        TRAIN_NUM_POINTS=Key(112 * 112, COUNT),
        OVERSAMPLE_RATIO=Key(3.0, Range(1)),
        IMPORTANCE_SAMPLE_RATIO=Key(0.75, SHARE),
    ),
    **section(
        "MODEL.MASK_FORMER.TEST",
        SEMANTIC_ON=Key(True),
        INSTANCE_ON=Key(False),
        PANOPTIC_ON=Key(False),
        OBJECT_MASK_THRESHOLD=Key(0.0),
        OVERLAP_THRESHOLD=Key(0.0),
        SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE=Key(False),
    ),
    **section(
        "MODEL.SEM_SEG_HEAD",
        MASK_DIM=Key(256, COUNT),
        TRANSFORMER_ENC_LAYERS=Key(0, NONNEGATIVE),
        PIXEL_DECODER_NAME=Key("BasePixelDecoder"),
        DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=Key(["res3", "res4", "res5"]),
        DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS=Key(4, COUNT),
        DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS=Key(8),
    ),
    **section(
        "MODEL.SWIN",
        PRETRAIN_IMG_SIZE=Key(224, COUNT),
        PATCH_SIZE=Key(4, COUNT),
        EMBED_DIM=Key(96, COUNT),
        DEPTHS=Key([2, 2, 6, 2], COUNT),
        NUM_HEADS=Key([3, 6, 12, 24], COUNT),
        WINDOW_SIZE=Key(7, COUNT),
        MLP_RATIO=Key(4.0, POSITIVE),
        QKV_BIAS=Key(True),
        QK_SCALE=Key(None),
        DROP_RATE=Key(0.0, RATE),
        ATTN_DROP_RATE=Key(0.0, RATE),
        DROP_PATH_RATE=Key(0.3, RATE),
        APE=Key(False),
        PATCH_NORM=Key(True),
        OUT_FEATURES=Key(["res2", "res3", "res4", "res5"]),
        USE_CHECKPOINT=Key(False),
    ),
}

OWN: dict[str, Key] = {
    **section(
        "MODEL.MASK_FORMER",
        ATTEND_PADDING=Key(False, None, "Attend to padded positions, as the official code does"),
        IGNORED_PIXELS=Key(
            "background",
            ("background", "ignore"),
            "How ignored pixels and padding count in matching and mask losses: outside of every mask, as in the "
            "official code, or not at all",
        ),
    ),
    **section(
        "MODEL.TIMM",
        NAME=Key("tf_efficientnet_lite0", None, "Backbone of the library timm, with MODEL.BACKBONE.NAME timm"),
        DROP_PATH_RATE=Key(0.0, RATE, "Stochastic depth of the backbone"),
        FROZEN=Key(False, None, "Train nothing of the backbone but its adapters"),
        LORA_RANK=Key(0, NONNEGATIVE, "r: rank of adapters on the query, key and value projections; 0: no adapters"),
        PYRAMID_CHANNELS=Key(256, COUNT, "Channels of each map of a plain Vision Transformer's feature pyramid"),
    ),
    **section(
        "MODEL.TMT",
        REGIONS=Key("adaptive", ("adaptive", "square"), 'Adaptive regions (ACTE), or squares: the ablation "w/o ACTE"'),
        CELL_SIZES=Key(
            [2, 4, 8], Range(1, count=3, whole=True), "c: initial side of a region at strides 32, 16, 8, in positions"
        ),
        ITERATIONS=Key(6, NONNEGATIVE, "L: clustering iterations"),
        KAPPA=Key(10.0, NONNEGATIVE, "kappa: sharpness of the similarity exp(kappa * cos(f(r), chi(p))) (Eq. 7)"),
        FEATURES=Key(
            "source",
            ("source", "live"),
            "Features that T is computed from: those of the frozen source model, for which T of an image is constant, "
            "or those of the model being trained",
        ),
        ATTENTION=Key("hard", ("hard", "off"), 'Exclude positions from attention, or not: the ablation "w/o TMA"'),
        P_T=Key(0.30, RATE, "p_T: share of the positions, those with the highest T, that no query attends to"),
        MASK_RULE=Key(
            "foreground",
            ("foreground", "uncertain"),
            "Attend where M >= lambda_M, as Mask2Former, or where M <= lambda_M, as Eq. 13 is printed",
        ),
        LAMBDA_M=Key(0.5, Range(0, 1, above=True), "lambda_M: threshold on the predicted mask probability M"),
        RANK_BY=Key(
            "T", ("T", "random", "inverted"), "Exclude positions with the highest T, or, as controls, any or the lowest"
        ),
        TRAIN_ATTENTION=Key(True, None, "False: training is that of full; a control with TEST_ATTENTION True"),
        TEST_ATTENTION=Key(
            False, None, "True: exclude positions in inference too, as the paper does; this runs a second encoder"
        ),
        OUTPUT_TRANSFERABILITY=Key(False, None, 'Add "transferability", T of each level, to each output'),
    ),
    **section(
        "MODEL.TMT.DISCRIMINATOR",
        HIDDEN_DIM=Key(64, NONNEGATIVE, "Hidden units of the discriminator E of a level; 0: a linear classifier"),
        NORMALIZE=Key(True, None, "Scale region features to unit length: their norm often reveals the domain"),
    ),
    **section(
        "TRANSFER",
        METHOD=Key("source", None, "Task: source, estimator, or a method of fine-tuning (see configs/methods)"),
        LABEL_FRACTION=Key(1.0, PART, "Share of the labeled target images to use; a smaller one is a subset"),
        LABEL_COUNT=Key(0, NONNEGATIVE, "Number of labeled target images to use; 0: LABEL_FRACTION"),
        LABEL_LIST=Key("", None, "File that names the labeled target images: an image id or file name a line"),
        LABEL_SEED=Key(0, Range(-1), "Seed of the choice of labeled images; -1: SEED"),
        REINIT_CLASS_HEAD=Key(
            False, None, "Allow MODEL.WEIGHTS of other classes: rows of common names are kept, others are new"
        ),
        MAP_CACHE=Key(
            "auto",
            None,
            "Folder of cached T with FEATURES source; auto: transferability/ beside MODEL.WEIGHTS; empty: no cache",
        ),
    ),
    **section(
        "TRANSFER.ESTIMATOR",
        TARGET_ERROR=Key(0.0, Range(0, 0.5), "A level takes no step while its running training error is below this"),
        HELD_OUT=Key(200, COUNT, "Images per domain for the proxy A-distance"),
    ),
    # leep, otce. The two steps are those of Tan et al. (arXiv 2207.05510); the values are ours, none is published.
    **section(
        "TRANSFER.ALIGNMENT",
        ITERATIONS=Key(50, NONNEGATIVE, "leep, otce: steps on the score before fine-tuning, on top of its budget"),
        BASE_LR=Key(1e-5, NONNEGATIVE, "Learning rate of these steps"),
        WEIGHT=Key(1.0, PART, "w in the loss w * -score + (1 - w) * segmentation loss of the target"),
        PIXELS=Key(512, COUNT, "Labeled pixels per domain and step"),
        EPSILON=Key(0.1, POSITIVE, "otce: entropic regularization, relative to the mean cost of the transport"),
        SINKHORN_ITERATIONS=Key(50, COUNT, "otce: iterations that compute the transport"),
    ),
    **section(
        "SELF_TRAINING",
        LABELED_RATIO=Key(1.0, NONNEGATIVE, "Labeled target images per step, times SOLVER.IMS_PER_BATCH"),
        UNLABELED_RATIO=Key(0.5, NONNEGATIVE, "Unlabeled target images per step, times SOLVER.IMS_PER_BATCH"),
        SOURCE_RATIO=Key(0.0, NONNEGATIVE, "Labeled source images per step, times SOLVER.IMS_PER_BATCH"),
        RARE_CLASS_TEMPERATURE=Key(
            0.0, NONNEGATIVE, "T of rare class sampling: P(class of share f) ~ exp((1 - f) / T); 0: uniform sampling"
        ),
        RARE_CLASS_AREA=Key(
            0.01, SHARE, "Share of a crop's area that a class must have in an image sampled for it; in the crop, half"
        ),
        EMA_MOMENTUM=Key(0.99, SHARE, "m: the teacher keeps min(1 - 1 / (i + 1), m) of itself in step i after burn-in"),
        BURN_IN=Key(0.0, SHARE, "Share of SOLVER.MAX_ITER in which the teacher is the initial model"),
        WARM_UP=Key(0.0, SHARE, "Share of SOLVER.MAX_ITER without losses on pseudo-labels"),
        PSEUDO_LABEL_WEIGHT=Key(1.0, NONNEGATIVE, "Weight of the losses on pseudo-labels"),
        CONFIDENCE_THRESHOLD=Key(
            0.0, SHARE, "Class probability, normalized over the classes, from which the teacher is confident of a pixel"
        ),
        IGNORE_UNCONFIDENT=Key(False, None, "Ignore the other pixels, as with IGNORED_PIXELS ignore"),
        WEIGHT_BY=Key(
            "none",
            ("none", "pixel", "image"),
            "Weight of a mask's losses: 1, or the share of confident pixels in the mask or in its image",
        ),
        CLASS_BALANCE=Key(
            0.0, SHARE, "Exponent of a class's share of the pseudo-labels, by which its probability is divided; 0: off"
        ),
        IGNORED_ROWS=Key(
            (0.0, 0.0),
            Range(0, 1, count=2),
            "Shares of an unlabeled image's height, at the top and at the bottom, from which no crop is taken",
        ),
        MIX=Key("classmix", ("classmix", "none"), "Paste half of the classes of a labeled image onto an unlabeled one"),
        COLOR_JITTER_PROB=Key(0.8, SHARE, "Probability of color jitter in the student's view"),
        COLOR_JITTER_STRENGTH=Key(
            0.2, NONNEGATIVE, "Relative change of brightness, contrast and saturation; change of hue in turns"
        ),
        BLUR_PROB=Key(0.5, SHARE, "Probability of blur in the student's view, sigma 0.15 to 1.15 pixels"),
        MIC_WEIGHT=Key(0.0, NONNEGATIVE, "Weight of the loss on a second, masked view of each unlabeled image (MIC)"),
        MIC_MASK_RATIO=Key(0.7, SHARE, "Share of masked blocks"),
        MIC_BLOCK_SIZE=Key(0.0625, SHARE, "Side of a block, relative to the crop's shorter side"),
        FDA_BETA=Key(0.0, SHARE, "Size of the low-frequency band that source images take from target images (FDA)"),
    ),
    **section(
        "LOGGING",
        IMAGES=Key(0, NONNEGATIVE, "Images of DATASETS.TEST whose predictions and T are logged at every evaluation"),
        WANDB_PROJECT=Key("", None, "Weights & Biases project for scalars and images; needs the package wandb"),
    ),
    **section(
        "DATASETS",
        SOURCE_TRAIN=Key((), None, "Source splits beside the target's, which DATASETS.TRAIN names"),
        SOURCE_TEST=Key((), None, "Held-out source splits"),
        UNLABELED=Key((), None, "Further target splits for self-training; their labels are not read"),
        CUSTOM=Key((), None, "YAML files that describe data sets of your own"),
        SUBSETS=Key((), None, "Splits that may have images without a label, which are left out"),
    ),
    **section(
        "DATALOADER",
        MAX_BAD_FRACTION=Key(0.05, SHARE, "Share of unreadable training images that are replaced by others"),
    ),
    **section(
        "SOLVER",
        ACCUMULATION_STEPS=Key(1, COUNT, "Micro-batches into which a process splits its images of a step"),
        LAYER_DECAY=Key(1.0, PART, "Learning rate of a Vision Transformer's block, relative to the next block's"),
        CHECKPOINTS_KEPT=Key(3, COUNT, "Number of periodic checkpoints kept"),
        DETECT_ANOMALY=Key(False, None, "Stop at the first module that outputs NaN or infinity; slow"),
    ),
    **section(
        "SOLVER.AMP",
        DTYPE=Key("float16", ("float16", "bfloat16"), "float16 uses a gradient scaler, as in the official code"),
    ),
    **section(
        "TEST",
        PRECISION=Key("float32", ("float32", "bfloat16"), "Precision of inference; scores are float32"),
    ),
    **section(
        "TEST.BEST",
        METRIC=Key("", None, "Metric that chooses model_best.pth: mIoU, IoU-car, estimated, ...; empty: none"),
        SPLIT=Key("", None, "Split of DATASETS.TEST for METRIC; empty: the first"),
        PATIENCE=Key(0, NONNEGATIVE, "Stop after this number of evaluations without improvement; 0: never"),
    ),
    **section(
        "TEST.SLIDING_WINDOW",
        ENABLED=Key(False, None, "Predict in overlapping windows"),
        SIZE=Key([1024, 1024], SIZES, "Height and width of a window"),
        STRIDE=Key([768, 768], SIZES, "Vertical and horizontal distance of windows"),
    ),
}  # fmt: skip

DETECTRON2: dict[str, Allowed] = {
    "SEED": Range(-(2**31), 2**31),
    "SOLVER.BASE_LR": NONNEGATIVE,
    "SOLVER.BASE_LR_END": NONNEGATIVE,
    "SOLVER.MAX_ITER": COUNT,
    "SOLVER.IMS_PER_BATCH": COUNT,
    "SOLVER.CHECKPOINT_PERIOD": NONNEGATIVE,
    "SOLVER.MOMENTUM": RATE,
    "SOLVER.WEIGHT_DECAY": NONNEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": NONNEGATIVE,
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": NONNEGATIVE,
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.GAMMA": PART,
    "SOLVER.NUM_DECAYS": COUNT,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Range(0, math.inf, above=True, below=False),
    "DATALOADER.NUM_WORKERS": NONNEGATIVE,
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.MIN_SIZE_TRAIN": Range(0, whole=True),
    "INPUT.MAX_SIZE_TRAIN": COUNT,
    "INPUT.MIN_SIZE_TEST": NONNEGATIVE,
    "INPUT.MAX_SIZE_TEST": COUNT,
    "INPUT.CROP.SIZE": Range(0, above=True, count=2),
    "TEST.EVAL_PERIOD": NONNEGATIVE,
    "TEST.AUG.MIN_SIZES": COUNT,
    "TEST.AUG.MAX_SIZE": COUNT,
    "MODEL.META_ARCHITECTURE": Registered("META_ARCH_REGISTRY"),
    "MODEL.BACKBONE.NAME": Registered("BACKBONE_REGISTRY"),
    "MODEL.BACKBONE.FREEZE_AT": NONNEGATIVE,
    "MODEL.PIXEL_MEAN": Range(-math.inf, count=3, above=True),
    "MODEL.PIXEL_STD": Range(0, count=3, above=True),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NUM_GROUPS": COUNT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": COUNT,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": COUNT,
    "MODEL.SEM_SEG_HEAD.NAME": Registered("SEM_SEG_HEADS_REGISTRY"),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": Range(1, 255, below=False),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": Range(0, 255, below=False),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": COUNT,
}  # fmt: skip

ALLOWED: dict[str, Allowed] = DETECTRON2 | {
    name: key.allowed for name, key in (DEEPLAB | MASK2FORMER | OWN).items() if key.allowed is not None
}

_RENAMED_SELF_TRAINING = {
    "LABELLED": "LABELED_RATIO", "UNLABELLED": "UNLABELED_RATIO", "SOURCE": "SOURCE_RATIO", "EMA": "EMA_MOMENTUM",
    "RARE_CLASSES": "RARE_CLASS_TEMPERATURE", "WEIGHT": "PSEUDO_LABEL_WEIGHT", "THRESHOLD": "CONFIDENCE_THRESHOLD",
    "COLOUR": "COLOR_JITTER_PROB", "COLOUR_STRENGTH": "COLOR_JITTER_STRENGTH", "BLUR": "BLUR_PROB",
    "MASKED_WEIGHT": "MIC_WEIGHT", "MASK_RATIO": "MIC_MASK_RATIO", "MASK_BLOCK": "MIC_BLOCK_SIZE",
    "RARE_CLASS_AREA": "RARE_CLASS_AREA", "MIX": "MIX",
    "BURN_IN": "BURN_IN", "WARM_UP": "WARM_UP", "IGNORE_UNCONFIDENT": "IGNORE_UNCONFIDENT", "WEIGHT_BY": "WEIGHT_BY",
    "FDA_BETA": "FDA_BETA",
}  # fmt: skip
RENAMED = {  # old key: new key
    "TRANSFER.STAGE": "TRANSFER.METHOD",
    "TRANSFER.LABELLED": "TRANSFER.LABEL_LIST",
    "TRANSFER.MAPS": "TRANSFER.MAP_CACHE",
    "TRANSFER.DETECT_ANOMALY": "SOLVER.DETECT_ANOMALY",
    "TRANSFER.WANDB": "LOGGING.WANDB_PROJECT",
    "TEST.PICTURES": "LOGGING.IMAGES",
    "DATASETS.UNLABELLED": "DATASETS.UNLABELED",
    **{f"TRANSFER.SELF_TRAINING.{old}": f"SELF_TRAINING.{new}" for old, new in _RENAMED_SELF_TRAINING.items()},
}
# config.yaml of older runs has them.
REMOVED = [f"SELF_TRAINING.FEATURE_DISTANCE_{name}" for name in ("WEIGHT", "CHECKPOINT", "CLASSES")]


def add_tmt_config(cfg: CfgNode) -> None:
    """Add the official DeepLab and Mask2Former keys and the project's own keys to ``cfg`` in place."""
    for name, key in (DEEPLAB | MASK2FORMER | OWN).items():
        set_key(cfg, name, copy.copy(key.default))
