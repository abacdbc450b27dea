"""``MODEL.BACKBONE.NAME timm``: models of the library timm as Detectron2 backbones.

Hierarchical networks (EfficientNet, ConvNeXt, MobileNetV4, Swin, PVT, RegNet, ...) have features res2 ... res5.
Plain Vision Transformers (DINOv2, DINOv3, EVA-02, ...) have one map at 1/16 of the image; Detectron2's
``SimpleFeaturePyramid`` (ViTDet, arXiv 2203.16527) makes four maps of it. If their patches have another size, 14 in
DINOv2, timm resamples the patch embedding to 16 when weights are loaded, as Rein does (arXiv 2312.04265), and the
position embeddings to the size of the image in every pass.
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
PROBE_SIZE = (96, 160)
SHOWN = 4  # names in an error
TIMM_WEIGHTS = "timm://"  # prefix of MODEL.WEIGHTS, see ``engine/checkpoint/pretrained.py``
Normalization = tuple[list[float], list[float]]  # mean and standard deviation, RGB, in 0 ... 255
# MODEL.PIXEL_MEAN and PIXEL_STD that no user has set: Detectron2's defaults and those of configs/.
DEFAULT_NORMALIZATIONS: tuple[Normalization, ...] = (
    ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0]),
    ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ([127.5, 127.5, 127.5], [127.5, 127.5, 127.5]),
)


class TimmBackbone(Backbone):
    """A timm model's features: res2 ... res5, or of a plain Vision Transformer ``last``, at 1/16.

    Attributes:
        net: timm's ``features_only`` model, whose names the state dict has.
        normalization: mean and standard deviation per RGB channel with which the weights ``name`` were trained, in
            0 ... 255.
        blocks: number of blocks of a plain Vision Transformer, 0 for other networks.
    """

    def __init__(self, name: str, drop_path_rate: float = 0.0, frozen: bool = False, lora_rank: int = 0):
        """
        Args:
            name: timm's, with or without a tag, such as ``convnextv2_tiny`` or ``vit_base_patch14_dinov2.lvd142m``.
            drop_path_rate: stochastic depth (arXiv 1603.09382).
            frozen: freeze ``net``, except for adapters.
            lora_rank: rank of adapters (LoRA, arXiv 2106.09685) on every projection to queries, keys and values; 0:
                none.

        Raises:
            UserError: timm is not installed or has no such model, the model has no features of these strides, or no
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
        strides = {"last": PATCH} if plain else STRIDES
        if not set(strides.values()) <= set(reductions):
            message = f"it has features at strides {reductions}, {[*strides.values()]} are needed"
            raise UserError(message, key="MODEL.TIMM.NAME", value=name)
        indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides.values()]
        # The shape is ambiguous if a map has as many rows as channels.
        self._channels_last = getattr(probe, "output_fmt", "NCHW") == "NHWC"
        _check(probe, name, indices, lora_rank)
        drop_path = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        self.net: Any = create_model(
            name, features_only=True, out_indices=[-1] if plain else indices, **drop_path, **self._options
        )
        self._out_features = list(strides)
        self._shapes = {
            out: ShapeSpec(channels=channels[index], stride=stride)
            for index, (out, stride) in zip(indices, strides.items())
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
            self.net.eval()  # frozen includes statistics and stochastic depth
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @property
    def size_divisibility(self) -> int:
        return 32

    def convert(self, weights: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
        """Convert pretrained weights to entries of this module's state dict.

        Args:
            weights: of a timm model, of its authors' original, or of the same layers in the same order under other
                names. Other parts, such as the classifier, are left out.

        Raises:
            UserError: an entry is missing or has another shape; its key is ``file``.
        """
        with torch.device("meta"):
            whole = _timm().create_model(self.name, **self._options)
        entrypoint = sys.modules[_timm().model_entrypoint(self.name.split(".")[0]).__module__]
        convert = getattr(entrypoint, "checkpoint_filter_fn", None)
        weights = dict(weights)
        if not set(weights) & set(whole.state_dict()):
            in_order = _by_order(weights, whole.state_dict())
            if in_order:
                message = "%s has none of timm's names, but arrays of the same shapes: loaded in order, e.g. %s as %s"
                logger.warning(message, file, next(iter(weights)), next(iter(in_order)))
            weights = in_order or weights
        if convert is not None:
            try:
                weights = convert(weights, whole)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:  # an entry that it needs is missing
                logger.info("%s: timm's conversion for %s does not apply (%s)", file, self.name, error)
        left = {_plain(name): name for name in weights}
        own = {name: value for name, value in self.net.state_dict().items() if ".lora_" not in name}
        fitting = {}
        for name, value in own.items():
            source = left.get(_plain(name))
            if source is not None and weights[source].shape == value.shape:
                fitting[name] = weights[left.pop(_plain(name))]
        missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
        if missing:
            message = f"does not fit MODEL.TIMM.NAME {self.name}: missing or of another shape: {_some(missing)}"
            raise UserError(message, key=file, hint=f"left over: {_some(list(left.values()))}")
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
    """Build the backbone of ``MODEL.TIMM``."""
    settings = cfg.MODEL.TIMM
    if cfg.INPUT.FORMAT != "RGB":
        raise UserError("timm's models were trained on RGB", key="INPUT.FORMAT", value=cfg.INPUT.FORMAT)
    net = TimmBackbone(settings.NAME, settings.DROP_PATH_RATE, settings.FROZEN, settings.LORA_RANK)
    net.normalization = _chosen_normalization(cfg, net.normalization)
    return TimmPyramid(net, settings.PYRAMID_CHANNELS) if net.blocks else net


def _chosen_normalization(cfg: CfgNode, pretrained: Normalization) -> Normalization:
    """Return the config's mean and standard deviation where a user has set them, else those of MODEL.TIMM.NAME.

    Values that the files in configs/ hold for other backbones do not count as set by a user.

    Raises:
        UserError: MODEL.WEIGHTS names weights of timm that were trained with others than those of MODEL.TIMM.NAME.
            Later stages start from a checkpoint, so MODEL.TIMM.NAME must name the weights in all of them.
    """
    weights = cfg.MODEL.WEIGHTS
    configured: Normalization = ([*cfg.MODEL.PIXEL_MEAN], [*cfg.MODEL.PIXEL_STD])
    is_default = any(_alike(configured, each) for each in (pretrained, *DEFAULT_NORMALIZATIONS))
    if is_default and weights.startswith(TIMM_WEIGHTS):
        settings = _timm().get_pretrained_cfg(weights.removeprefix(TIMM_WEIGHTS))
        if settings is not None and not _alike(_normalization(settings.to_dict()), pretrained):
            raise UserError(
                f"{weights} was trained with another mean and standard deviation",
                key="MODEL.TIMM.NAME",
                value=cfg.MODEL.TIMM.NAME,
                hint=f"set it to {weights.removeprefix(TIMM_WEIGHTS)} in all stages",
            )
    chosen = pretrained if is_default else configured
    if not _alike(configured, pretrained):
        message = "MODEL.PIXEL_MEAN %s, PIXEL_STD %s: %s was trained with %s and %s; the model uses %s and %s"
        logger.warning(message, *configured, cfg.MODEL.TIMM.NAME, *pretrained, *chosen)
    return chosen


def _alike(one: Normalization, other: Normalization) -> bool:
    return all(abs(a - b) <= 0.5 for ours, theirs in zip(one, other) for a, b in zip(ours, theirs))


def _normalization(settings: Mapping[str, Any]) -> Normalization:
    """Return mean and standard deviation of timm's settings of pretrained weights, in 0 ... 255."""
    mean, std = ([255.0 * value for value in settings[key]] for key in ("mean", "std"))
    return mean, std


def timm_part(model: nn.Module) -> tuple[str, TimmBackbone] | None:
    """Return name and module of the model's timm backbone, None if it has another backbone."""
    return next(((name, module) for name, module in model.named_modules() if isinstance(module, TimmBackbone)), None)


def _timm() -> Any:
    try:
        import timm as library
    except ImportError as error:
        raise UserError(
            "it is not installed", key="MODEL.BACKBONE.NAME", value="timm", hint="pip install timm"
        ) from error
    return library


def _options(name: str) -> dict[str, Any]:
    """Return the arguments with which this model takes images of any size."""
    library, key = _timm(), "MODEL.TIMM.NAME"
    known = library.list_models()
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name.split(".")[0], known, 3, 0.5)
        hint = f"near: {', '.join(near)}" if near else "timm.list_models() lists all"
        raise UserError(f"timm {library.__version__} has no such model", key=key, value=name, hint=hint)
    with torch.device("meta"):
        try:
            whole = library.create_model(name, num_classes=0)
        except RuntimeError as error:  # an unknown tag
            raise UserError(" ".join(str(error).split()), key=key, value=name) from error
    accepted = inspect.signature(type(whole).__init__).parameters
    if "dynamic_img_size" in accepted:
        return {"dynamic_img_size": True}
    return {"strict_img_size": False} if "strict_img_size" in accepted else {}


def _check(probe: nn.Module, name: str, indices: Sequence[int], lora_rank: int) -> None:
    """Run one pass on the meta device.

    Raises:
        UserError: the model takes images of one size only, has no adapters, or some that its features do not use.
    """
    with torch.device("meta"):
        adapters = add_lora(probe, lora_rank) if lora_rank else 0
        try:
            maps = probe.eval()(torch.empty(1, 3, *PROBE_SIZE))
        except (AssertionError, RuntimeError) as error:
            raise UserError("the model takes images of one size only", key="MODEL.TIMM.NAME", value=name) from error
    if not lora_rank:
        return
    torch.stack([maps[index].sum() for index in indices]).sum().backward()
    idle = adapters_without_gradient(probe)
    if idle or not adapters:
        message = (
            f"the adapter on {idle[0]} would not learn" if idle else "no layer projects to queries, keys or values"
        )
        raise UserError(f"in {name} {message}", key="MODEL.TIMM.LORA_RANK", value=lora_rank, hint="set it to 0")


def _plain(name: str) -> str:
    """Return the name as in a whole model: ``features_only`` models have ``stages_0`` for ``stages.0``, or ``model.``
    in front."""
    return name.removeprefix("model.").replace(".", "_")


def _by_order(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename weights of the same layers in the same order, such as those of lukemelas' EfficientNet; else None."""

    def kinds(state: Mapping[str, Tensor]) -> list[tuple[str, torch.Size]]:
        return [(name.rsplit(".", 1)[-1], value.shape) for name, value in state.items()]

    return dict(zip(model, weights.values())) if kinds(weights) == kinds(model) else None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing"
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
