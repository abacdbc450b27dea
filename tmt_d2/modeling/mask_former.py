"""The two meta-architectures: ``MaskFormer`` (Mask2Former for semantic segmentation) and ``TransferableMaskFormer``.

Follow one image: ``preprocess`` -> backbone -> pixel decoder -> (TMT: transferability of every position) -> decoder
-> in training ``losses``, else ``postprocess``.

Letters: B images, Q queries, N classes, (H, W) the padded image size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..data.targets import semantic_targets
from ..interop.official import unused_settings
from ..transferability.estimator import (
    LevelTransferability,
    TransferabilityEstimator,
    TransferabilityMap,
    fill_frozen_encoder,
)
from .backbone import DropPath
from .criterion import SetCriterion
from .mask_former_head import MaskFormerHead
from .tracing import is_traced
from .transformer_decoder import LayerTrace

logger = logging.getLogger(__name__)

# Mask values that inference upsamples at once, by kind of device: on a CPU few enough to stay in its cache.
STRIP_VALUES = {"cpu": 2**22, "cuda": 2**28}

Record = Mapping[str, Any]  # one element of Detectron2's batched inputs


class Encoded(NamedTuple):
    """What the pixel decoder made of a batch: levels (B, C, h, w), mask_features (B, C, H/4, W/4), and which
    positions of the levels are not padding, (B, h, w) bool each, or None where there is no padding."""

    levels: list[Tensor]
    mask_features: Tensor
    valid: list[Tensor] | None


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask2Former with semantic inference. State-dict names are the official ones."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: MaskFormerHead,
        criterion: SetCriterion,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        postprocess_before_inference: bool,
        attend_padding: bool,
    ):
        """
        Args:
            size_divisibility: images are padded to a multiple of it.
            pixel_mean, pixel_std: per channel, in the order of the input image.
            postprocess_before_inference: resize the masks of the queries, not the class scores, to the output size:
                slightly better, slower.
            attend_padding: let queries attend to padded positions, as the official code does.
        """
        super().__init__()
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.sem_seg_head = sem_seg_head.to(memory_format=torch.channels_last)
        self.criterion = criterion
        self.size_divisibility = size_divisibility
        self.postprocess_before_inference = postprocess_before_inference
        self.attend_padding = attend_padding
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        head = build_sem_seg_head(cfg, backbone.output_shape())
        former = cfg.MODEL.MASK_FORMER
        unused = unused_settings(cfg)
        if unused:
            logger.info("settings without a meaning here: %s", ", ".join(unused))
        if not former.TEST.SEMANTIC_ON:
            raise ValueError("MODEL.MASK_FORMER.TEST.SEMANTIC_ON is False: only semantic segmentation is built")
        criterion = SetCriterion(
            head.num_classes,
            class_weight=former.CLASS_WEIGHT,
            mask_weight=former.MASK_WEIGHT,
            dice_weight=former.DICE_WEIGHT,
            no_object_weight=former.NO_OBJECT_WEIGHT,
            num_aux_outputs=former.DEC_LAYERS - 1 if former.DEEP_SUPERVISION else 0,
            num_points=former.TRAIN_NUM_POINTS,
            oversample_ratio=former.OVERSAMPLE_RATIO,
            importance_sample_ratio=former.IMPORTANCE_SAMPLE_RATIO,
            ignored_pixels=former.IGNORED_PIXELS,
        )
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "criterion": criterion,
            "size_divisibility": former.SIZE_DIVISIBILITY
            if former.SIZE_DIVISIBILITY > 0
            else backbone.size_divisibility,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "postprocess_before_inference": former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "attend_padding": former.ATTEND_PADDING,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> MaskFormer:
        super().train(mode)
        for part in (self.backbone, self.sem_seg_head.pixel_decoder):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()  # frozen means its normalisation statistics too
        return self

    def forward(
        self, batched_inputs: Sequence[Record], num_masks: Tensor | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: Detectron2 records: "image" (3, h, w) in the configured channel order; in training
                "sem_seg" (h, w), train ids, and optionally "padded_size" (H, W), to which the image is padded, and
                "seed", of the points on which its losses are taken; otherwise optionally "height" and "width", the
                wanted size of the output.
            num_masks: in training, of ``count_masks`` the mean over the calls that make one step, if they are several.

        Returns:
            in training the weighted losses, else per image {"sem_seg": (N, height, width) float scores}.
        """
        images = self.preprocess(batched_inputs)
        encoded = self.encode(images)
        transferability = self.transferability_of(images, encoded, batched_inputs)
        outputs = self.decode(encoded, transferability)
        if self.training:
            return self.losses(outputs, batched_inputs, images, num_masks)
        results = self.postprocess(outputs, batched_inputs, images)
        self.annotate(results, transferability, images)
        return results

    def preprocess(self, batched_inputs: Sequence[Record]) -> ImageList:
        """Normalised images, padded at the bottom and right to one size: the largest, or the largest "padded_size"."""
        images = [
            (record["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
            for record in batched_inputs
        ]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        padded = [_pad_to(image, record.get("padded_size", (0, 0))) for image, record in zip(images, batched_inputs)]
        tensor = ImageList.from_tensors(padded, self.size_divisibility).tensor
        # Convolutions run faster on channels-last maps, and flattening such maps to sequences copies nothing.
        return ImageList(tensor.contiguous(memory_format=torch.channels_last), sizes)

    def encode(self, images: ImageList) -> Encoded:
        mask_features, levels = self.sem_seg_head.pixel_decoder(self.backbone(images.tensor))
        return Encoded(levels, mask_features, None if self.attend_padding else valid_positions(images, levels))

    def transferability_of(
        self, images: ImageList, encoded: Encoded, batched_inputs: Sequence[Record] = ()
    ) -> Sequence[TransferabilityMap] | None:
        """Transferability of the positions of every level; None for plain Mask2Former."""
        return None

    def attended(self, transferability: Sequence[TransferabilityMap] | None, encoded: Encoded) -> list[Tensor] | None:
        """Per level (B, h, w) bool, True = transferability lets queries attend to the position; None = everywhere."""
        return None

    def attention_bias(self, transferability: Sequence[TransferabilityMap] | None) -> list[Tensor] | None:
        """Per level (B, h, w) float <= 0, what transferability adds to attention scores; None = nothing."""
        return None

    def decode(
        self,
        encoded: Encoded,
        transferability: Sequence[TransferabilityMap] | None,
        trace: list[LayerTrace] | None = None,
    ) -> dict[str, Any]:
        attended, bias = self.attended(transferability, encoded), self.attention_bias(transferability)
        return self.sem_seg_head.predictor(encoded.levels, encoded.mask_features, attended, encoded.valid, trace, bias)

    def losses(
        self,
        outputs: Mapping[str, Any],
        batched_inputs: Sequence[Record],
        images: ImageList,
        num_masks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of all decoder outputs."""
        height, width = images.tensor.shape[-2:]
        ignore = self.sem_seg_head.ignore_value
        labels = torch.full((len(images), height, width), ignore, dtype=torch.long, device=self.device)
        for padded, record in zip(labels, batched_inputs):
            sem_seg = record["sem_seg"]
            padded[: sem_seg.shape[-2], : sem_seg.shape[-1]] = sem_seg.to(self.device, non_blocking=True)
        seeds = [record["seed"] for record in batched_inputs if "seed" in record]
        targets = semantic_targets(labels, ignore)
        losses = self.criterion(outputs, targets, num_masks, seeds if len(seeds) == len(targets) else None)
        return {name: loss * self.criterion.weight_dict[name] for name, loss in losses.items()}

    def count_masks(self, batched_inputs: Sequence[Record]) -> int:
        """How many masks the losses of these training records are taken over."""
        labels = (record["sem_seg"].unique() for record in batched_inputs)
        return sum(int((ids != self.sem_seg_head.ignore_value).sum()) for ids in labels)

    def postprocess(
        self, outputs: Mapping[str, Any], batched_inputs: Sequence[Record], images: ImageList
    ) -> list[dict[str, Any]]:
        """Class scores of every pixel at the wanted output size."""
        padded_size = tuple(images.tensor.shape[-2:])
        results = []
        for logits, mask, record, (height, width) in zip(
            outputs["pred_logits"], outputs["pred_masks"].dense(), batched_inputs, images.image_sizes
        ):
            size = (record.get("height", height), record.get("width", width))
            if self.postprocess_before_inference:
                scores = semantic_scores(logits, _resize(_resize(mask, padded_size)[:, :height, :width], size))
            else:
                scores = _resize(upsampled_scores(logits, mask, padded_size)[:, :height, :width], size)
            results.append({"sem_seg": scores})
        return results

    def annotate(
        self, results: list[dict[str, Any]], transferability: Sequence[TransferabilityMap] | None, images: ImageList
    ) -> None:
        """Add to the results, in place, what a subclass has to say besides the scores."""

    @torch.no_grad()
    def inspect(self, batched_inputs: Sequence[Record]) -> dict[str, Any]:
        """One evaluation pass with everything a picture needs.

        Returns:
            "results" as ``forward``, "outputs" of the decoder, "layers": a ``LayerTrace`` per decoder layer,
            "transferability": a ``LevelTransferability`` per level or None, "images": the padded ``ImageList``.
        """
        if self.training:
            raise ValueError("inspect() looks at evaluation: call model.eval() first")
        images = self.preprocess(batched_inputs)
        encoded = self.encode(images)
        transferability = self.transferability_of(images, encoded)
        trace: list[LayerTrace] = []
        outputs = self.decode(encoded, transferability, trace)
        return {
            "results": self.postprocess(outputs, batched_inputs, images),
            "outputs": outputs,
            "layers": trace,
            "transferability": transferability,
            "images": images,
        }


@META_ARCH_REGISTRY.register()
class TransferableMaskFormer(MaskFormer):
    """Mask2Former whose masked attention also obeys transferability (Eqs. 12-13).

    Adds ``transferability.*`` to the state dict; a plain Mask2Former checkpoint loads with only those missing.
    """

    @configurable
    def __init__(
        self,
        *,
        transferability: TransferabilityEstimator,
        p_t: float,
        attention: bool,
        output_transferability: bool,
        soft: bool = False,
        soft_strength: float = 0.0,
        rank_by: str = "T",
        train_attention: bool = True,
        **mask_former: Any,
    ):
        """
        Args:
            transferability: ACTE. p_t: fraction of positions, those with the highest T, that are not attended to.
            attention: False computes T but masks no attention by it ("w/o TMA").
            output_transferability: add "transferability" to each result.
            soft, soft_strength: these positions are attended to less instead, see ``transferability_bias``.
            rank_by: "T", or for controls "inverted" (the lowest T is excluded) or "random" positions.
            train_attention: False masks attention in inference only, a control.
            mask_former: the arguments of ``MaskFormer``.
        """
        super().__init__(**mask_former)
        self.transferability = transferability
        self.p_t, self.attention, self.output_transferability = p_t, attention, output_transferability
        self.soft, self.soft_strength = soft, soft_strength
        self.rank_by, self.train_attention = rank_by, train_attention
        if transferability.backbone is not None:
            self.register_load_state_dict_pre_hook(_fill_frozen_encoder)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        tmt = cfg.MODEL.TMT
        encoder = (arguments["backbone"], arguments["sem_seg_head"].pixel_decoder)
        # The estimator stage needs no copy: there the model's own features are those of the source model.
        copies_encoder = tmt.FEATURES == "source" and cfg.TRANSFER.STAGE != "estimator"
        return {
            **arguments,
            "transferability": TransferabilityEstimator(
                channels=cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
                features=tmt.FEATURES,
                cell_sizes=tmt.CELL_SIZES,
                iterations=tmt.ITERATIONS,
                kappa=tmt.KAPPA,
                regions=tmt.REGIONS,
                hidden_dim=tmt.DISCRIMINATOR.HIDDEN_DIM,
                normalize=tmt.DISCRIMINATOR.NORMALIZE,
                frozen_encoder=encoder if copies_encoder else None,
            ),
            "p_t": tmt.P_T,
            "attention": tmt.ATTENTION,
            "output_transferability": tmt.OUTPUT_TRANSFERABILITY,
            "soft": tmt.SOFT,
            "soft_strength": tmt.SOFT_STRENGTH,
            "rank_by": tmt.RANK_BY,
            "train_attention": tmt.TRAIN_ATTENTION,
        }

    def transferability_of(
        self, images: ImageList, encoded: Encoded, batched_inputs: Sequence[Record] = ()
    ) -> Sequence[TransferabilityMap] | None:
        """Of the records' "transferability", one map of logits a level, where they have it; else as ``estimate``."""
        if not (self._acts or self.output_transferability):
            return None
        maps = [record["transferability"] for record in batched_inputs if "transferability" in record]
        if not maps:
            return self.estimate(images, encoded)
        if len(maps) < len(batched_inputs):
            raise ValueError(f'{len(maps)} of {len(batched_inputs)} records have "transferability": all or none must')
        return [given_map([each[i] for each in maps], level) for i, level in enumerate(encoded.levels)]

    @torch.no_grad()
    def estimate(self, images: ImageList, encoded: Encoded) -> list[LevelTransferability]:
        """Transferability from the features that MODEL.TMT.FEATURES names.

        Always as in evaluation, and so as the discriminators learned it: with running statistics, without dropout, a
        function of the picture alone. Where the model's own features in training are not that, they are made again.
        """
        levels = self.transferability.encode(images.tensor)
        if levels is None:
            encoder = nn.ModuleList([self.backbone, self.sem_seg_head.pixel_decoder])
            levels = encoded.levels
            if any(map(differs_in_training, encoder.modules())):
                modes = {module: module.training for module in encoder.modules()}
                encoder.eval()
                levels = self.sem_seg_head.pixel_decoder(self.backbone(images.tensor)).levels
                for module, mode in modes.items():
                    module.training = mode
        return self.transferability(levels, valid_positions(images, levels))

    def attended(self, transferability: Sequence[TransferabilityMap] | None, encoded: Encoded) -> list[Tensor] | None:
        if transferability is None or not self._acts or self.soft:
            return None
        attended = [self._ranked(level).attended(self.p_t) for level in transferability]
        if self.attend_padding:  # padding has no transferability, so only the predicted mask decides there
            attended = [mask | ~level.valid for mask, level in zip(attended, transferability)]
        return attended

    def attention_bias(self, transferability: Sequence[TransferabilityMap] | None) -> list[Tensor] | None:
        if transferability is None or not self._acts or not self.soft or self.p_t == 0:
            return None
        return [self._ranked(level).bias(self.p_t, self.soft_strength) for level in transferability]

    @property
    def _acts(self) -> bool:
        return self.attention and (self.train_attention or not self.training)

    def _ranked(self, level: TransferabilityMap) -> TransferabilityMap:
        """What positions are excluded by: T, or for controls the opposite or chance.

        Chance is new in every training step and one fixed pattern in evaluation.
        """
        if self.rank_by == "T":
            return level
        logits = -level.logits
        if self.rank_by == "random":
            generator = None if self.training else torch.Generator(logits.device).manual_seed(0)
            size = logits.shape if self.training else logits.shape[1:]
            logits = torch.rand(size, generator=generator, device=logits.device).expand_as(logits)
        return TransferabilityMap(logits, level.valid)

    def annotate(
        self, results: list[dict[str, Any]], transferability: Sequence[TransferabilityMap] | None, images: ImageList
    ) -> None:
        if self.output_transferability and transferability is not None:
            for index, result in enumerate(results):
                result["transferability"] = [level.map_of(index) for level in transferability]


def _pad_to(image: Tensor, size: Sequence[int]) -> Tensor:
    """(C, h, w) -> (C, max(h, H), max(w, W)), zeros at the bottom and right."""
    bottom, right = (max(wanted - length, 0) for wanted, length in zip(size, image.shape[-2:]))
    return F.pad(image, (0, right, 0, bottom)) if bottom or right else image


def _fill_frozen_encoder(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any, **more: Any) -> None:
    """Weights without the frozen copy are those of the source model: the copy takes the model's own."""
    if not prefix:
        state_dict.update(fill_frozen_encoder(state_dict))


def given_map(logits: Sequence[Tensor], level: Tensor) -> TransferabilityMap:
    """Maps (h, w) of the images of a batch, padded to the size of the level (B, C, H, W)."""
    padded = level.new_zeros(len(logits), *level.shape[-2:], dtype=torch.float32)
    valid = torch.zeros_like(padded, dtype=torch.bool)
    for index, each in enumerate(logits):
        padded[index, : each.shape[0], : each.shape[1]] = each.to(level.device, non_blocking=True)
        valid[index, : each.shape[0], : each.shape[1]] = True
    return TransferabilityMap(padded, valid)


def differs_in_training(module: nn.Module) -> bool:
    """Whether the module, as it is set, makes of an image what it would not make of it in evaluation."""
    if not module.training:
        return False
    if isinstance(module, (nn.modules.dropout._DropoutNd, DropPath)):
        return (module.rate if isinstance(module, DropPath) else module.p) > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def valid_positions(images: ImageList, levels: Sequence[Tensor]) -> list[Tensor] | None:
    """Per level (B, h, w) bool: True where a position sees at least one pixel that is not padding; None = all do."""
    height, width = images.tensor.shape[-2:]
    if all(tuple(size) == (height, width) for size in images.image_sizes):
        return None
    valid = []
    for level in levels:
        h, w = level.shape[-2:]
        mask = torch.zeros(len(images), h, w, dtype=torch.bool, device=level.device)
        for index, (image_height, image_width) in enumerate(images.image_sizes):
            mask[index, : math.ceil(image_height * h / height), : math.ceil(image_width * w / width)] = True
        valid.append(mask)
    return valid


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """class_logits (Q, N + 1), mask_logits (Q, H, W) -> (N, H, W): sum over queries of class times mask probability."""
    probabilities = class_logits.softmax(-1)[:, :-1]
    return torch.einsum("qn,qhw->nhw", probabilities, mask_logits.sigmoid())


def upsampled_scores(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """``semantic_scores`` of the masks resized to ``size``, strip by strip: Q maps of that size never exist at once.

    class_logits (Q, N + 1), mask_logits (Q, h, w) -> (N, *size).
    """
    queries, h, w = mask_logits.shape
    scale = size[0] // h
    rows = max(STRIP_VALUES.get(mask_logits.device.type, 2**28) // (queries * scale * size[1]), 1)
    if is_traced() or rows >= h or size != (h * scale, w * scale):  # a graph wants no loop
        return semantic_scores(class_logits, _resize(mask_logits, size))
    strips = []
    for top in range(0, h, rows):
        bottom = min(top + rows, h)
        first, last = max(top - 1, 0), min(bottom + 1, h)  # interpolation looks one row further
        strip = _resize(mask_logits[:, first:last], ((last - first) * scale, size[1]))
        strips.append(semantic_scores(class_logits, strip[:, (top - first) * scale : (bottom - first) * scale]))
    return torch.cat(strips, 1)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size), bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
