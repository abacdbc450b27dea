"""Every configuration key of the project with its default, and ``setup_cfg``, which reads a config file.

The first half are the official Mask2Former keys with their official defaults, so official YAML files merge
unchanged. The second half is TMT's own: ``MODEL.TMT`` (the method), ``TRANSFER`` (the protocol) and a few
keys beside existing ones. Symbols and equation numbers are those of arXiv 2504.05774.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from tmt_d2.config.checks import check_cfg
from tmt_d2.config.file import find_config, load_config_file
from tmt_d2.errors import UserError, did_you_mean

NUM_CLASSES_UNSET = (54, 19)  # Detectron2's default and that of the base configs: give way to what the data sets have


_SELF_TRAINING = {
    "LABELLED": "LABELED_RATIO",
    "UNLABELLED": "UNLABELED_RATIO",
    "SOURCE": "SOURCE_RATIO",
    "RARE_CLASSES": "RARE_CLASS_TEMPERATURE",
    "EMA": "EMA_MOMENTUM",
    "WEIGHT": "PSEUDO_LABEL_WEIGHT",
    "THRESHOLD": "CONFIDENCE_THRESHOLD",
    "COLOUR": "COLOR_JITTER_PROB",
    "COLOUR_STRENGTH": "COLOR_JITTER_STRENGTH",
    "BLUR": "BLUR_PROB",
    "MASKED_WEIGHT": "MIC_WEIGHT",
    "MASK_RATIO": "MIC_MASK_RATIO",
    "MASK_BLOCK": "MIC_BLOCK_SIZE",
    "FEATURE_DISTANCE": "FEATURE_DISTANCE_WEIGHT",
    "FEATURE_WEIGHTS": "FEATURE_DISTANCE_CHECKPOINT",
    "FEATURE_CLASSES": "FEATURE_DISTANCE_CLASSES",
}
_UNCHANGED = ("BURN_IN", "WARM_UP", "IGNORE_UNCONFIDENT", "WEIGHT_BY", "MIX", "FDA_BETA", "RARE_CLASS_AREA")
RENAMED = {  # old key: new key
    "TRANSFER.STAGE": "TRANSFER.METHOD",
    "TRANSFER.LABELLED": "TRANSFER.LABEL_LIST",
    "TRANSFER.MAPS": "TRANSFER.MAP_CACHE",
    "TRANSFER.DETECT_ANOMALY": "SOLVER.DETECT_ANOMALY",
    "TRANSFER.WANDB": "LOGGING.WANDB_PROJECT",
    "TEST.PICTURES": "LOGGING.IMAGES",
    "DATASETS.UNLABELLED": "DATASETS.UNLABELED",
    **{f"TRANSFER.SELF_TRAINING.{old}": f"SELF_TRAINING.{new}" for old, new in _SELF_TRAINING.items()},
    **{f"TRANSFER.SELF_TRAINING.{key}": f"SELF_TRAINING.{key}" for key in _UNCHANGED},
}


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add the official Mask2Former keys, with the official defaults, to ``cfg`` in place."""
    add_deeplab_config(cfg)  # SOLVER.POLY_LR_*, and ResNet keys that official configs name
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1

    former = cfg.MODEL.MASK_FORMER = CfgNode()
    former.DEEP_SUPERVISION = True
    former.NO_OBJECT_WEIGHT = 0.1
    former.CLASS_WEIGHT = 1.0
    former.DICE_WEIGHT = 1.0
    former.MASK_WEIGHT = 20.0
    former.NHEADS = 8
    former.DROPOUT = 0.1
    former.DIM_FEEDFORWARD = 2048
    former.ENC_LAYERS = 0
    former.DEC_LAYERS = 6  # official meaning: decoder layers + 1, because the queries are supervised before layer 1 too
    former.PRE_NORM = False
    former.HIDDEN_DIM = 256
    former.NUM_OBJECT_QUERIES = 100
    former.TRANSFORMER_IN_FEATURE = "res5"
    former.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    former.ENFORCE_INPUT_PROJ = False
    former.SIZE_DIVISIBILITY = 32
    former.TRAIN_NUM_POINTS = 112 * 112
    former.OVERSAMPLE_RATIO = 3.0
    former.IMPORTANCE_SAMPLE_RATIO = 0.75
    former.TEST = CfgNode()
    former.TEST.SEMANTIC_ON = True
    former.TEST.INSTANCE_ON = False
    former.TEST.PANOPTIC_ON = False
    former.TEST.OBJECT_MASK_THRESHOLD = 0.0
    former.TEST.OVERLAP_THRESHOLD = 0.0
    former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False

    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 0
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8

    swin = cfg.MODEL.SWIN = CfgNode()
    swin.PRETRAIN_IMG_SIZE = 224
    swin.PATCH_SIZE = 4
    swin.EMBED_DIM = 96
    swin.DEPTHS = [2, 2, 6, 2]
    swin.NUM_HEADS = [3, 6, 12, 24]
    swin.WINDOW_SIZE = 7
    swin.MLP_RATIO = 4.0
    swin.QKV_BIAS = True
    swin.QK_SCALE = None
    swin.DROP_RATE = 0.0
    swin.ATTN_DROP_RATE = 0.0
    swin.DROP_PATH_RATE = 0.3
    swin.APE = False
    swin.PATCH_NORM = True
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    swin.USE_CHECKPOINT = False


def add_tmt_config(cfg: CfgNode) -> None:
    """Add the official Mask2Former keys and the project's own keys to ``cfg`` in place."""
    add_maskformer2_config(cfg)

    # False: padded positions are never attended to. True: attended to as in the official code, which differs
    # only for images whose size is no multiple of SIZE_DIVISIBILITY.
    cfg.MODEL.MASK_FORMER.ATTEND_PADDING = False
    # What ignored pixels and padding are to the mask and dice losses and to matching: outside of every mask, as in the
    # official code; or "ignore": nothing, whatever is predicted there.
    cfg.MODEL.MASK_FORMER.IGNORED_PIXELS = "background"

    timm = cfg.MODEL.TIMM = CfgNode()  # with MODEL.BACKBONE.NAME "timm"
    timm.NAME = "tf_efficientnet_lite0"  # any model of the library timm with features; MODEL.WEIGHTS names its weights
    timm.DROP_PATH_RATE = 0.0
    timm.FROZEN = False  # nothing of it learns, but adapters do
    timm.LORA_RANK = 0  # r: low-rank adapters on the projections to queries, keys and values; 0: none
    timm.PYRAMID_CHANNELS = 256  # of each of the four maps made of a plain Vision Transformer's one

    tmt = cfg.MODEL.TMT = CfgNode()
    # Adaptive clustering (Eqs. 6-9), one entry per level the decoder attends to: strides 32, 16, 8.
    tmt.REGIONS = "adaptive"  # "square": equal patches instead of adaptive regions, the ablation "w/o ACTE"
    tmt.CELL_SIZES = [2, 4, 8]  # c: a region starts as a c x c cell of the level, 64 x 64 image pixels
    tmt.ITERATIONS = 6  # L
    tmt.KAPPA = 10.0  # kappa: sharpness of the similarity exp(kappa * cos(f(r), chi(p))) (Eq. 7)
    # What ACTE sees: "source": the features of the frozen source model, those that E has learned on, so T of a picture
    # never changes; or "live": the model's own, in evaluation mode, with which T drifts while they are fine-tuned.
    tmt.FEATURES = "source"
    # Discriminator E (Eqs. 2-5, 10), one per level.
    tmt.DISCRIMINATOR = CfgNode()
    tmt.DISCRIMINATOR.HIDDEN_DIM = 64  # 0: a linear classifier
    tmt.DISCRIMINATOR.NORMALIZE = True  # region features to unit length: their norm alone often gives the domain away
    # Transferable masked attention (Eqs. 12-13).
    # "hard": positions that p_T excludes are not attended to; "off": T is computed but acts on nothing, the ablation
    # "w/o TMA".
    tmt.ATTENTION = "hard"
    tmt.P_T = 0.30  # p_T: the fraction of positions, those with the highest T, that no query attends to
    tmt.MASK_RULE = (
        "foreground"  # attend where M >= lambda_M (Mask2Former); "uncertain": where M <= lambda_M (as printed)
    )
    tmt.LAMBDA_M = 0.5  # lambda_M: threshold on the predicted mask probability M
    # Controls that tell what T itself does: exclude the share p_T with the lowest T ("inverted"), or any ("random");
    # and with TRAIN_ATTENTION False only inference is masked, after training that is the same as that of `full`.
    tmt.RANK_BY = "T"
    tmt.TRAIN_ATTENTION = True

    cfg.MODEL.TMT.OUTPUT_TRANSFERABILITY = False  # add "transferability" (per-level maps T) to each output

    transfer = cfg.TRANSFER = CfgNode()
    transfer.METHOD = "source"  # the task: source, estimator, or a method of fine-tuning, see adaptation/
    transfer.LABEL_FRACTION = 1.0  # share of the target's labelled training images that fine-tuning may use
    transfer.LABEL_COUNT = 0  # so many labelled images instead; 0 = the fraction
    # Which images these are; a smaller fraction or count is a subset of a larger one. -1: SEED, each run its own.
    transfer.LABEL_SEED = 0
    transfer.LABEL_LIST = ""  # instead, a file that names the labelled images: image ids or file names, one a line
    # Where MODEL.WEIGHTS has other classes: classes that both know by name keep their rows of the class head, others
    # begin anew; all do where the file names none and has another number of them.
    transfer.REINIT_CLASS_HEAD = False
    # leep, otce: before fine-tuning, whose budget this does not reduce, the score of the source model on labelled
    # pixels is raised by gradient. No publication fixes these choices: the two steps are Tan et al.'s (arXiv
    # 2207.05510), every value below is our reading.
    transfer.ALIGNMENT = CfgNode()
    transfer.ALIGNMENT.ITERATIONS = 50  # optimiser steps on the score, with SOLVER.IMS_PER_BATCH images each; 0 = none
    transfer.ALIGNMENT.BASE_LR = 1e-5  # small: a score on a batch says little; otherwise the optimiser of SOLVER
    transfer.ALIGNMENT.WEIGHT = 1.0  # the loss is WEIGHT * -score + (1 - WEIGHT) * the target's segmentation loss
    # Labelled pixels per domain and step; P(y, z) and the transport are over the share of each micro-batch and process.
    transfer.ALIGNMENT.PIXELS = 512
    transfer.ALIGNMENT.EPSILON = 0.1  # otce: entropic regularisation of the transport, relative to its mean cost
    transfer.ALIGNMENT.SINKHORN_ITERATIONS = 50  # otce
    # otce: gradients through all Sinkhorn iterations; False: the dual potentials are taken as constants, so that the
    # plan exp((u + v - cost) / epsilon) depends on the features through its cost only. (A plan without any gradient
    # would leave H(Yt | Ys) none.)
    transfer.ALIGNMENT.DIFFERENTIATE_PLAN = True
    # self-training, full-ema: a teacher, the moving average of the model, labels the pictures that have no label.
    training = cfg.SELF_TRAINING = CfgNode()
    # Images per step, times SOLVER.IMS_PER_BATCH: labeled target, unlabeled target, source. With LABELED_RATIO 1.0
    # the labelled ones are those of `full`, and the others come on top of them.
    training.LABELED_RATIO = 1.0
    training.UNLABELED_RATIO = 0.5
    training.SOURCE_RATIO = 0.0
    # T of rare class sampling: pictures with a label are drawn for a class, with probability ~ exp((1 - f) / T) for one
    # that is the share f of all pixels; 0: in turn. DAFormer has 0.01.
    training.RARE_CLASS_TEMPERATURE = 0.0
    # A picture has a class that fills this share of a crop, were all of it there; the crop drawn has half of that.
    training.RARE_CLASS_AREA = 0.01
    training.EMA_MOMENTUM = 0.99  # m: the teacher keeps min(1 - 1 / (i + 1), m) of itself in step i after the burn-in
    training.BURN_IN = 0.0  # share of SOLVER.MAX_ITER in which the teacher stays the model that training starts from
    training.WARM_UP = 0.0  # share of SOLVER.MAX_ITER in which only labels teach, and the teacher follows them
    training.PSEUDO_LABEL_WEIGHT = 1.0  # of the loss on pseudo-labels
    # Probability from which the teacher is confident of a pixel: the marginal over the queries, divided by its sum over
    # the classes.
    training.CONFIDENCE_THRESHOLD = 0.0
    training.IGNORE_UNCONFIDENT = False  # the other pixels are ignored, as with IGNORED_PIXELS "ignore"
    # Weight of the mask and dice losses of a mask, the mean over its pixels of: "none", 1; "pixel", 1 or 0;
    # "image", the share of the image's pixels that are confident. Pasted pixels count 1.
    training.WEIGHT_BY = "none"
    training.MIX = "classmix"  # half of the classes of a labelled picture are pasted onto an unlabelled one; or "none"
    training.COLOR_JITTER_PROB = 0.8  # probability that the student sees an unlabelled picture in other colours
    training.COLOR_JITTER_STRENGTH = (
        0.2  # brightness, contrast and saturation times 1 -+ this, hue -+ this of a full turn
    )
    training.BLUR_PROB = 0.5  # probability that it sees it blurred, with a sigma from 0.15 to 1.15 pixels
    # The student also learns from the unlabelled pictures with blocks hidden (MIC), if MIC_WEIGHT, of that loss, is
    # not 0: one more view of each in a step.
    training.MIC_WEIGHT = 0.0
    training.MIC_MASK_RATIO = 0.7  # of the blocks are hidden
    training.MIC_BLOCK_SIZE = 0.0625  # side of a block, as a share of the crop's shorter side
    # The backbone's features of FEATURE_DISTANCE_CLASSES in source images stay near those of this checkpoint, such as
    # MODEL.WEIGHTS of the source stage, by this weight (DAFormer: 0.005); 0: they are free.
    training.FEATURE_DISTANCE_WEIGHT = 0.0
    training.FEATURE_DISTANCE_CHECKPOINT = ""
    training.FEATURE_DISTANCE_CLASSES = (
        "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"
    )  # fmt: skip
    # Source pictures take low frequencies' amplitudes from a target picture, up to this share; after the warm-up.
    training.FDA_BETA = 0.0
    transfer.ESTIMATOR = CfgNode()
    transfer.ESTIMATOR.TARGET_ERROR = 0.0  # a level takes no step while its running training error is below this
    transfer.ESTIMATOR.HELD_OUT = 200  # images per domain on which the proxy A-distance is measured
    # With FEATURES "source": the folder where T of every training picture is kept, made once and read like a label.
    # "auto": `transferability` beside MODEL.WEIGHTS, shared by all who start from it; "": T is made in every step.
    transfer.MAP_CACHE = "auto"
    transfer.DRIFT_IMAGES = 20  # per domain, held out: drift of T with FEATURES "live", at every evaluation

    cfg.LOGGING = CfgNode()
    cfg.LOGGING.WANDB_PROJECT = ""  # Weights & Biases project for scalars and images; needs the package wandb
    cfg.LOGGING.IMAGES = 0  # number of images of DATASETS.TEST whose predictions and T are logged at every evaluation

    cfg.DATASETS.SOURCE_TRAIN = ()  # estimator: source-domain splits (DATASETS.TRAIN: target-domain splits)
    cfg.DATASETS.SOURCE_TEST = ()  # estimator: held-out source images (DATASETS.TEST: held-out target images)
    cfg.DATASETS.UNLABELED = ()  # self-training: more target splits, whose labels, if there are any, are not read
    cfg.DATASETS.CUSTOM = ()  # YAML files that each describe a data set of your own
    cfg.DATASETS.SUBSETS = ()  # splits with images without a label, which are left out: an error where not named here

    # IMS_PER_BATCH images are one step; each process takes its share of them in this many micro-batches.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    cfg.SOLVER.LAYER_DECAY = 1.0  # of a plain Vision Transformer: each block learns this much slower than the next one
    cfg.SOLVER.AMP.DTYPE = "float16"  # with a gradient scaler, as the official code; or "bfloat16", without
    cfg.SOLVER.CHECKPOINTS_KEPT = 3  # periodic ones; model_final does not count
    cfg.DATALOADER.MAX_BAD_FRACTION = 0.05  # of the training images may be unreadable, and are replaced by others
    cfg.SOLVER.DETECT_ANOMALY = False  # stop at the module that first makes a NaN or an infinity; slow

    cfg.TEST.PRECISION = "float32"  # or "bfloat16", on GPUs and on CPUs that are faster with it; scores are float32
    # The weights that are best at an evaluation (TEST.EVAL_PERIOD) of source training or fine-tuning are kept in
    # model_best.pth; what they were, and all other evaluations, in best.json.
    cfg.TEST.BEST = CfgNode()
    cfg.TEST.BEST.METRIC = ""  # such as mIoU or IoU-car, higher is better; "": no such file
    cfg.TEST.BEST.SPLIT = ""  # one of DATASETS.TEST; "": the first
    cfg.TEST.BEST.PATIENCE = 0  # training ends after so many evaluations in a row that brought nothing better; 0: never
    cfg.TEST.SLIDING_WINDOW = CfgNode()
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    cfg.TEST.SLIDING_WINDOW.SIZE = [1024, 1024]  # height, width
    cfg.TEST.SLIDING_WINDOW.STRIDE = [768, 768]


def setup_cfg(config_file: str | Path, opts: Sequence[Any] = (), method: str | Path = "") -> CfgNode:
    """Read a config file, that of a method over it, then the ``KEY VALUE ...`` overrides, and check the result.

    Nothing in a file is executed: see ``load_config_file``, which also describes ``_BASE_`` and ``_METHODS_``.
    OUTPUT_DIR is output/<config file>/<method> if a method is given and neither file nor override has one.

    A whole number stands for a float, and a plain name for a list of one. The modules that the environment variable
    TMT_IMPORT names (with commas between them) are imported first: they register a user's own data sets, backbones, ...

    Raises:
        FileNotFoundError: the file, or one of its bases, does not exist.
        UserError: an unknown key, a value of a wrong type, or a value that no stage could run with.
    """
    if not config_file:
        raise UserError("there is no config file: name one, e.g. --config-file configs/models/tiny.yaml")
    _import_modules(os.environ.get("TMT_IMPORT", ""))
    cfg = get_cfg()
    add_tmt_config(cfg)
    values = load_config_file(find_config(config_file), method)
    if method:
        values.setdefault("OUTPUT_DIR", f"output/{Path(config_file).stem}/{Path(method).stem}")
    for key in (*_keys(values), *opts[::2]):
        if key in RENAMED:
            raise UserError(f"the key is now {RENAMED[key]}", key=key)
    try:
        cfg.merge_from_other_cfg(CfgNode(_fitted(values, cfg)))
        for key, value in zip(opts[::2], opts[1::2]):
            cfg.merge_from_list([key, _fitted(value, _default_of(key, cfg))])
        if len(opts) % 2:
            raise UserError(f"{opts[-1]} has no value behind it: overrides are KEY VALUE ...")
    except (KeyError, AssertionError, ValueError) as error:
        raise UserError(f"{config_file}: {_one_line(error)}{_nearest_key(error, cfg)}") from error
    check_cfg(cfg)
    return cfg


def with_num_classes(cfg: CfgNode, count: int) -> CfgNode:
    """A copy with MODEL.SEM_SEG_HEAD.NUM_CLASSES ``count``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = count
    cfg.freeze()
    return cfg


def _import_modules(names: str) -> None:
    for name in filter(None, names.split(",")):
        try:
            importlib.import_module(name.strip())
        except ModuleNotFoundError as error:
            raise UserError(f"TMT_IMPORT names {name}: {error}; is its folder in PYTHONPATH?") from error


def model_settings(cfg: CfgNode) -> str:
    """MODEL as YAML, without where its weights come from and where it runs: what, beside the weights, it depends on."""
    model = cfg.MODEL.clone()
    model.defrost()
    model.WEIGHTS = model.DEVICE = ""
    return model.dump()


def _fitted(value: Any, default: Any) -> Any:
    """``value``, as text or not, as the kind of ``default`` that it plainly means; anything else as it is."""
    if isinstance(value, dict) and isinstance(default, dict):
        return {key: _fitted(item, default.get(key)) for key, item in value.items()}
    try:
        read = ast.literal_eval(value) if isinstance(value, str) else value  # as Detectron2 reads it
    except (ValueError, SyntaxError):
        read = value
    if isinstance(default, float) and type(read) is int:
        return float(read)
    if isinstance(default, (tuple, list)) and isinstance(read, str) and all(isinstance(each, str) for each in default):
        return (read,)
    return value


def _default_of(key: str, cfg: CfgNode) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, CfgNode) else None
    return node


def _nearest_key(error: BaseException, cfg: CfgNode) -> str:
    unknown = re.search(r"Non-existent (?:config )?key: (\S+)", str(error))
    return did_you_mean(unknown[1].strip("'\""), _keys(cfg)) if unknown else ""


def _keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error.args[0] if error.args else error).split())
    # A whole section may stand in it, with the key at the end.
    return text if len(text) <= 400 else f"{text[:150]} ... {text[-200:]}"
