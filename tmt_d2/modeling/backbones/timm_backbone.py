"""``MODEL.BACKBONE.NAME timm``: any model of the library timm that gives features, as a Detectron2 backbone.

Hierarchical networks (EfficientNet, ConvNeXt, MobileNetV4, Swin, PVT, RegNet, ...) give res2 ... res5 themselves.
Plain Vision Transformers (DINOv2, DINOv3, EVA-02, ...) have one map at 1/16 of the image; four are made of it by
Detectron2's ``SimpleFeaturePyramid`` (ViTDet, arXiv 2203.16527). Where their patches are of another size, 14 in DINOv2,
timm resamples the patch embedding to 16 when weights are read, as Rein does (arXiv 2312.04265), and the position
embeddings to the image's size in every pass.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor, nn

from tmt_d2.errors import UserError
from tmt_d2.modeling.backbones.lora import adapters_without_gradient, add_lora

logger = logging.getLogger(__name__)

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
PATCH = 16
TRIED_SIZE = (96, 160)
SHOWN = 4  # names in an error
TIMM_WEIGHTS = "timm://"  # of MODEL.WEIGHTS, see ``engine/checkpoint/pretrained.py``
Normalization = tuple[list[float], list[float]]  # mean and standard deviation, RGB, in 0 ... 255
# What MODEL.PIXEL_MEAN and PIXEL_STD are where a user has not set them: Detectron2's defaults and those of configs/.
HELD_BY_CONFIGS: tuple[Normalization, ...] = (
    ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0]),
    ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ([127.5, 127.5, 127.5], [127.5, 127.5, 127.5]),
)


class TimmBackbone(Backbone):
    """A timm model's features: res2 ... res5, or of a plain Vision Transformer ``last``, at 1/16.

    Attributes:
        net: timm's ``features_only`` model, whose names the state dict has.
        normalization: mean and standard deviation per RGB channel that the weights ``name`` were trained with, in
            0 ... 255.
        blocks: of a plain Vision Transformer, how many; 0 for any other.
    """

    def __init__(self, name: str, drop_path_rate: float = 0.0, frozen: bool = False, lora_rank: int = 0):
        """
        Args:
            name: timm's, with or without a tag, such as ``convnextv2_tiny`` or ``vit_base_patch14_dinov2.lvd142m``.
            drop_path_rate: stochastic depth (arXiv 1603.09382).
            frozen: nothing of ``net`` learns, but adapters do.
            lora_rank: adapters (LoRA, arXiv 2106.09685) on every projection to queries, keys and values; 0: none.

        Raises:
            UserError: timm is not installed or knows no such model, it has no features of these strides, or no
                projections that can be adapted.
        """
        super().__init__()
        create_model = _timm().create_model
        self.name, self._options = name, _options(name)
        with torch.device("meta"):  # shapes only
            probe = create_model(name, features_only=True, **self._options)
            plain = len(set(probe.feature_info.reduction())) == 1
            if plain and probe.feature_info.reduction()[0] != PATCH:
                self._options["patch_size"] = PATCH
                probe = create_model(name, features_only=True, **self._options)
        reductions, channels = probe.feature_info.reduction(), probe.feature_info.channels()
        wanted = {"last": PATCH} if plain else STRIDES
        if not set(wanted.values()) <= set(reductions):
            raise UserError(
                f"MODEL.TIMM.NAME {name} has features at strides {', '.join(map(str, reductions))}: "
                f"{', '.join(map(str, wanted.values()))} are needed"
            )
        indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in wanted.values()]
        # timm says it; the shape does not, where a map has as many rows as channels.
        self._channels_last = getattr(probe, "output_fmt", "NCHW") == "NHWC"
        _try(probe, name, indices, lora_rank)
        drop_path = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        self.net: Any = create_model(
            name, features_only=True, out_indices=[-1] if plain else indices, **drop_path, **self._options
        )
        self._out_features = list(wanted)
        self._shapes = {
            out: ShapeSpec(channels=channels[index], stride=stride)
            for index, (out, stride) in zip(indices, wanted.items())
        }
        self.normalization = _normalization(self.net.pretrained_cfg)
        self.blocks = len(self.net.model.blocks) if plain else 0
        self.frozen = frozen
        if frozen:
            self.net.requires_grad_(False)
        if lora_rank:
            add_lora(self.net, lora_rank)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), multiples of 32 -> {"res2": (B, C2, H/4, W/4), ...}, or {"last": (B, C, H/16, W/16)}."""
        maps = self.net(x)
        if self._channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        return dict(zip(self._shapes, maps))

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        if self.frozen:
            self.net.eval()  # frozen means statistics and stochastic depth too
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @property
    def size_divisibility(self) -> int:
        return 32

    def convert(self, weights: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
        """The entries of a pretrained timm model, of its authors' original, or of the same layers in the same order
        under other names -> those of this module's state dict. Other parts, such as the classifier, are left out.

        Raises:
            UserError: something is missing or of another shape; ``file`` is named.
        """
        with torch.device("meta"):
            whole = _timm().create_model(self.name, **self._options)
        entrypoint = sys.modules[_timm().model_entrypoint(self.name.split(".")[0]).__module__]
        by_timm = getattr(entrypoint, "checkpoint_filter_fn", None)
        weights = dict(weights)
        if not set(weights) & set(whole.state_dict()):
            in_order = _by_order(weights, whole.state_dict())
            if in_order:
                logger.warning(
                    "%s has none of timm's names, but arrays of the same shapes: the %d weights of %s are taken in "
                    "order, e.g. %s for %s",
                    file, len(weights), self.name, next(iter(weights)), next(iter(in_order)),
                )  # fmt: skip
            weights = in_order or weights
        if by_timm is not None:
            try:
                weights = by_timm(weights, whole)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:  # it looks for what is not there
                logger.info("%s: timm's conversion for %s does not know it (%s)", file, self.name, error)
        left = {_plain(name): name for name in weights}
        own = {name: value for name, value in self.net.state_dict().items() if ".lora_" not in name}
        fitting = {}
        for name, value in own.items():
            there = left.get(_plain(name))
            if there is not None and weights[there].shape == value.shape:
                fitting[name] = weights[left.pop(_plain(name))]
        missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
        if missing:
            raise UserError(
                f"checkpoint {file} does not fit MODEL.TIMM.NAME {self.name}: {_some(missing)} not in it or of another "
                f"shape; left over: {_some(list(left.values()))}"
            )
        return {f"net.{name}": value for name, value in fitting.items()}


class TimmPyramid(SimpleFeaturePyramid):
    """A plain Vision Transformer with four maps: res2 ... res5 of ``channels`` each."""

    def __init__(self, net: TimmBackbone, channels: int):
        super().__init__(net, "last", channels, scale_factors=[PATCH / stride for stride in STRIDES.values()])
        self._renamed = dict(zip(self._out_features, STRIDES))
        self.normalization = net.normalization

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res2": (B, channels, H/4, W/4), ..., "res5": (B, channels, H/32, W/32)}."""
        return {self._renamed[name]: feature for name, feature in super().forward(x).items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {self._renamed[name]: shape for name, shape in super().output_shape().items()}


@BACKBONE_REGISTRY.register()
def timm(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The backbone that ``MODEL.TIMM`` describes."""
    settings = cfg.MODEL.TIMM
    if cfg.INPUT.FORMAT != "RGB":
        raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}: timm's models were trained on RGB")
    net = TimmBackbone(settings.NAME, settings.DROP_PATH_RATE, settings.FROZEN, settings.LORA_RANK)
    net.normalization = _chosen_normalization(cfg, net.normalization)
    return TimmPyramid(net, settings.PYRAMID_CHANNELS) if net.blocks else net


def _chosen_normalization(cfg: CfgNode, of_name: Normalization) -> Normalization:
    """The config's mean and standard deviation where they are a user's own, else ``of_name``, those of the weights that
    MODEL.TIMM.NAME names.

    The values that the files in configs/ hold are not a user's own: they were chosen for other backbones.

    Raises:
        UserError: MODEL.WEIGHTS names weights of timm with others. The weights of later stages are a checkpoint, so
            MODEL.TIMM.NAME alone can say it in all of them.
    """
    name, weights = cfg.MODEL.TIMM.NAME, cfg.MODEL.WEIGHTS
    here: Normalization = ([*cfg.MODEL.PIXEL_MEAN], [*cfg.MODEL.PIXEL_STD])
    if not any(_alike(here, held) for held in (of_name, *HELD_BY_CONFIGS)):
        logger.warning(
            "MODEL.PIXEL_MEAN %s and PIXEL_STD %s are taken, though %s has learned with %s and %s",
            *here,
            name,
            *of_name,
        )
        return here
    if weights.startswith(TIMM_WEIGHTS):
        settings = _timm().get_pretrained_cfg(weights.removeprefix(TIMM_WEIGHTS))
        if settings is not None and not _alike(_normalization(settings.to_dict()), of_name):
            raise UserError(
                f"MODEL.WEIGHTS {weights} has learned with another mean and standard deviation than MODEL.TIMM.NAME "
                f"{name}: set MODEL.TIMM.NAME {weights.removeprefix(TIMM_WEIGHTS)}, in all stages"
            )
    if not _alike(here, of_name):
        logger.warning(
            "MODEL.PIXEL_MEAN %s and PIXEL_STD %s: %s has learned with %s and %s, which are taken",
            *here,
            name,
            *of_name,
        )
    return of_name


def _alike(one: Normalization, other: Normalization) -> bool:
    return all(abs(a - b) <= 0.5 for mine, its in zip(one, other) for a, b in zip(mine, its))


def _normalization(settings: Mapping[str, Any]) -> Normalization:
    """Mean and standard deviation of timm's settings of pretrained weights, in 0 ... 255."""
    mean, std = ([255.0 * value for value in settings[key]] for key in ("mean", "std"))
    return mean, std


def timm_part(model: nn.Module) -> tuple[str, TimmBackbone] | None:
    """Name and module of a model's timm backbone, if it has one."""
    return next(((name, module) for name, module in model.named_modules() if isinstance(module, TimmBackbone)), None)


def _timm() -> Any:
    try:
        import timm as library
    except ImportError as error:
        raise UserError("MODEL.BACKBONE.NAME is timm, which is not installed: pip install timm") from error
    return library


def _options(name: str) -> dict[str, Any]:
    """What lets this model see images of any size."""
    library = _timm()
    known = library.list_models()
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name.split(".")[0], known, 3, 0.5)
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, which timm {library.__version__} does not know"
            + (f"; near: {', '.join(near)}" if near else "; timm.list_models() lists all")
        )
    with torch.device("meta"):
        try:
            whole = library.create_model(name, num_classes=0)
        except RuntimeError as error:  # an unknown tag
            raise UserError(f"MODEL.TIMM.NAME {name}: {' '.join(str(error).split())}") from error
    accepted = inspect.signature(type(whole).__init__).parameters
    options: dict[str, Any] = {}
    if "dynamic_img_size" in accepted:
        options["dynamic_img_size"] = True
    elif "strict_img_size" in accepted:
        options["strict_img_size"] = False
    return options


def _try(probe: nn.Module, name: str, indices: Sequence[int], lora_rank: int) -> None:
    """One pass without numbers, of the maps that are used.

    Raises:
        UserError: the model takes images of one size only, or has adapters that would not learn, or none.
    """
    with torch.device("meta"):
        adapters = add_lora(probe, lora_rank) if lora_rank else 0
        try:
            maps = probe.eval()(torch.empty(1, 3, *TRIED_SIZE))
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"MODEL.TIMM.NAME {name} takes pictures of one size only") from error
    if not lora_rank:
        return
    torch.stack([maps[index].sum() for index in indices]).sum().backward()
    idle = adapters_without_gradient(probe)
    if idle or not adapters:
        why = (
            f"an adapter on {idle[0]} would not learn"
            if idle
            else "no linear layer projects to queries, keys or values"
        )
        raise UserError(f"MODEL.TIMM.LORA_RANK is {lora_rank}: in {name} {why}; set it to 0")


def _plain(name: str) -> str:
    """``features_only`` models write ``stages_0`` for ``stages.0``, and put ``model.`` in front of others."""
    return name.removeprefix("model.").replace(".", "_")


def _by_order(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The same layers in the same order under other names, such as those of lukemelas' EfficientNet."""

    def kinds(state: Mapping[str, Tensor]) -> list[tuple[str, torch.Size]]:
        return [(name.rsplit(".", 1)[-1], value.shape) for name, value in state.items()]

    return dict(zip(model, weights.values())) if kinds(weights) == kinds(model) else None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing"
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
