"""``MaskFormer``: Mask2Former for semantic segmentation, the meta-architecture.

One image: ``preprocess`` -> ``encode`` (backbone, pixel decoder) -> decoder -> in training ``losses``, else
``postprocess``. ``tmt.TransferableMaskFormer`` adds the transferability of every position before the decoder.

Letters: B images, Q queries, N classes, (H, W) the padded image size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from tmt_d2.errors import UserError
from tmt_d2.modeling.criterion import SetCriterion
from tmt_d2.modeling.mask_former_head import MaskFormerHead
from tmt_d2.modeling.mask_logits import DecoderOutputs, MaskLogits
from tmt_d2.modeling.official import unused_settings
from tmt_d2.modeling.ops.resize import resize
from tmt_d2.modeling.precision import at_least_float32
from tmt_d2.modeling.targets import MaskTargets, semantic_targets
from tmt_d2.modeling.tracing import is_traced
from tmt_d2.modeling.transformer_decoder import DecoderInputs, KeyMask, LayerTrace

logger = logging.getLogger(__name__)

# Mask values that inference upsamples at once, by device type: on a CPU few enough to stay in its cache.
STRIP_VALUES = {"cpu": 2**22, "cuda": 2**28}
GROUP_VALUES = {"cpu": 2**28, "cuda": 2**30}  # class scores that exist at once where a part of their size is wanted
ALL_CLASSES = slice(None)

Record = Mapping[str, Any]  # one element of Detectron2's batched inputs


@dataclass(frozen=True)
class Pass:
    """Inputs and outputs of the decoder for a batch."""

    inputs: DecoderInputs
    outputs: DecoderOutputs


class Inspection(TypedDict):
    """One evaluation pass with all intermediate values that visualization needs.

    results: as ``forward``. layers: of each decoder layer. transferability: a ``LevelTransferability`` of each level;
    None for plain Mask2Former, and if it is neither used nor output. key_mask: of the decoder. images: padded.
    """

    results: list[dict[str, Any]]
    outputs: DecoderOutputs
    layers: list[LayerTrace]
    transferability: Sequence[Any] | None
    key_mask: KeyMask
    images: ImageList


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask2Former with semantic inference. State-dict names are the official ones.

    Attributes:
        classes: the ``ClassList`` of its training data or of its checkpoint; None where neither is known.
    """

    classes: Any = None
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
        ignored_pixels: str = "background",
    ):
        """
        Args:
            size_divisibility: images are padded to a multiple of it.
            pixel_mean, pixel_std: per channel, in the order of the input image.
            postprocess_before_inference: resize the masks of the queries, not the class scores, to the output size:
                slightly better, slower.
            attend_padding: let queries attend to padded positions, as the official code does.
            ignored_pixels: how ignored pixels and padding count in matching and mask losses: "background", outside of
                every mask as in the official code, or "ignore", left out.
        """
        super().__init__()
        if ignored_pixels not in ("background", "ignore"):
            raise ValueError(f"ignored_pixels is {ignored_pixels!r}: choose background or ignore")
        self.ignored_pixels = ignored_pixels
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
        # a timm backbone knows the values that its weights were trained with
        mean, std = getattr(backbone, "normalization", (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
        unused = unused_settings(cfg)
        if unused:
            logger.info("official settings that are not used: %s", ", ".join(unused))
        if not former.TEST.SEMANTIC_ON:
            message = "only semantic segmentation is built"
            raise UserError(message, key="MODEL.MASK_FORMER.TEST.SEMANTIC_ON", value=False)
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
        )
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "criterion": criterion,
            "size_divisibility": former.SIZE_DIVISIBILITY
            if former.SIZE_DIVISIBILITY > 0
            else backbone.size_divisibility,
            "pixel_mean": mean,
            "pixel_std": std,
            "postprocess_before_inference": former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "attend_padding": former.ATTEND_PADDING,
            "ignored_pixels": former.IGNORED_PIXELS,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> MaskFormer:
        super().train(mode)
        for part in (self.backbone, self.sem_seg_head.pixel_decoder):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()  # frozen includes its normalization statistics
        return self

    def forward(
        self, batched_inputs: Sequence[Record], num_masks: Tensor | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: Detectron2 records: "image" (3, h, w) in the configured channel order; in training
                "sem_seg" (h, w), class indices, and optionally "padded_size" (H, W), to which the image is padded,
                "seed" of the points on which its losses are taken, and "mask_weights" (256,), by class the factor of
                the mask losses; otherwise optionally "height" and "width", the size of the output.
            num_masks: in training, of ``count_masks`` the mean over the calls that make one step, if they are several.

        Returns:
            in training the weighted losses, else per image {"sem_seg": (N, height, width) float scores}.
        """
        images = self.preprocess(batched_inputs)
        passed = self.run(images, batched_inputs)
        if self.training:
            return self.losses(passed.outputs, batched_inputs, images, num_masks)
        return self.postprocess(passed, batched_inputs, images)

    def preprocess(self, batched_inputs: Sequence[Record]) -> ImageList:
        """Return normalized images, padded at the bottom and right to the largest size or the largest "padded_size"."""
        images = [
            (record["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
            for record in batched_inputs
        ]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        padded = [_pad_to(image, record.get("padded_size", (0, 0))) for image, record in zip(images, batched_inputs)]
        tensor = ImageList.from_tensors(padded, self.size_divisibility).tensor
        # Convolutions run faster on channels-last maps, and flattening such maps to sequences copies nothing.
        return ImageList(tensor.contiguous(memory_format=torch.channels_last), sizes)

    def run(
        self, images: ImageList, batched_inputs: Sequence[Record] = (), trace: list[LayerTrace] | None = None
    ) -> Pass:
        """Run the network on preprocessed images; trace: a list to which each layer appends its ``LayerTrace``."""
        inputs = self.encode(images)
        return Pass(inputs, self.sem_seg_head.predictor(*inputs, trace))

    def encode(self, images: ImageList) -> DecoderInputs:
        mask_features, levels = self.sem_seg_head.pixel_decoder(self.backbone(images.tensor))
        valid = None if self.attend_padding else valid_positions(images, levels)
        return DecoderInputs(levels, mask_features, KeyMask(valid))

    def losses(
        self,
        outputs: DecoderOutputs,
        batched_inputs: Sequence[Record],
        images: ImageList,
        num_masks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of all decoder outputs; all records of a call have "mask_weights", or none."""
        targets = self.targets(batched_inputs, images)
        seeds = [record["seed"] for record in batched_inputs if "seed" in record]
        losses = self.criterion(outputs, targets, num_masks, seeds if len(seeds) == len(targets) else None)
        return {name: loss * self.criterion.weight_dict[name] for name, loss in losses.items()}

    def targets(self, batched_inputs: Sequence[Record], images: ImageList) -> list[MaskTargets]:
        """Return the masks of each image. Ignored pixels of an image with "mask_weights" are always left out."""
        targets = []
        labels = self.padded_labels(batched_inputs, images)
        for target, record in zip(semantic_targets(labels, self.sem_seg_head.ignore_value), batched_inputs):
            if "mask_weights" in record:
                target = target._replace(weights=record["mask_weights"][target.labels])
            elif self.ignored_pixels == "background":
                target = target._replace(valid=None)
            targets.append(target)
        return targets

    def padded_labels(self, batched_inputs: Sequence[Record], images: ImageList) -> Tensor:
        """(B, H, W) long: "sem_seg" of every record, with the ignored index at padding."""
        shape = (len(batched_inputs), *images.tensor.shape[-2:])
        labels = torch.full(shape, self.sem_seg_head.ignore_value, dtype=torch.long, device=self.device)
        for padded, record in zip(labels, batched_inputs):
            sem_seg = record["sem_seg"]
            padded[: sem_seg.shape[-2], : sem_seg.shape[-1]] = sem_seg.to(self.device, non_blocking=True)
        return labels

    def count_masks(self, batched_inputs: Sequence[Record]) -> int:
        """Return the number of masks in the losses of these training records."""
        labels = (record["sem_seg"].unique() for record in batched_inputs)
        return sum(int((ids != self.sem_seg_head.ignore_value).sum()) for ids in labels)

    def postprocess(self, passed: Pass, batched_inputs: Sequence[Record], images: ImageList) -> list[dict[str, Any]]:
        """Return class scores of every pixel at the output size."""
        class_logits, masks = passed.outputs["pred_logits"], passed.outputs["pred_masks"]
        masks = MaskLogits(at_least_float32(masks.embeddings), at_least_float32(masks.features))
        padded_size = tuple(images.tensor.shape[-2:])
        results = []
        with torch.autocast(self.device.type, enabled=False):  # rounded scores of two classes are often equal
            for logits, mask, record, (height, width) in zip(
                at_least_float32(class_logits), masks.dense(), batched_inputs, images.image_sizes
            ):
                size = (record.get("height", height), record.get("width", width))
                if self.postprocess_before_inference:
                    scores = semantic_scores(logits, resize(resize(mask, padded_size)[:, :height, :width], size))
                else:
                    parts = [
                        resize(upsampled_scores(logits, mask, padded_size, classes)[:, :height, :width], size)
                        for classes in _class_groups(mask, logits.shape[-1] - 1, padded_size, size)
                    ]
                    scores = parts[0] if len(parts) == 1 else torch.cat(parts)
                results.append({"sem_seg": scores})
        return results

    @torch.no_grad()
    def inspect(self, batched_inputs: Sequence[Record], **options: Any) -> Inspection:
        """Run one evaluation pass and keep its intermediate values; options: of ``run``."""
        if self.training:
            raise ValueError("inspect() needs evaluation mode: call model.eval() first")
        images = self.preprocess(batched_inputs)
        trace: list[LayerTrace] = []
        passed = self.run(images, trace=trace, **options)
        return {
            "results": self.postprocess(passed, batched_inputs, images),
            "outputs": passed.outputs,
            "layers": trace,
            "transferability": getattr(passed, "transferability", None),
            "key_mask": passed.inputs.key_mask,
            "images": images,
        }


def _pad_to(image: Tensor, size: Sequence[int]) -> Tensor:
    """(C, h, w) -> (C, max(h, H), max(w, W)), zeros at the bottom and right."""
    bottom, right = (max(padded - length, 0) for padded, length in zip(size, image.shape[-2:]))
    return F.pad(image, (0, right, 0, bottom)) if bottom or right else image


def valid_positions(images: ImageList, levels: Sequence[Tensor]) -> list[Tensor] | None:
    """Return for each level (B, h, w) bool, True where a position covers a pixel that is not padding; None = all do."""
    height, width = images.tensor.shape[-2:]
    if all(tuple(size) == (height, width) for size in images.image_sizes):
        return None
    valid = []
    for level in levels:
        h, w = level.shape[-2:]
        mask = torch.zeros(len(images), h, w, dtype=torch.bool, device=level.device)
        for index, size in enumerate(images.image_sizes):
            rows, columns = real_positions(size, (height, width), (h, w))
            mask[index, :rows, :columns] = True
        valid.append(mask)
    return valid


def real_positions(image: Sequence[int], padded: Sequence[int], level: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of a level (h, w) that cover a pixel of the image, padded to ``padded``."""
    rows, columns = (math.ceil(edge * cells / full) for edge, full, cells in zip(image, padded, level))
    return rows, columns


def semantic_scores(class_logits: Tensor, mask_logits: Tensor, classes: slice = ALL_CLASSES) -> Tensor:
    """class_logits (Q, N + 1), mask_logits (Q, H, W) -> (N, H, W): sum over queries of class times mask probability."""
    probabilities = class_logits.softmax(-1)[:, :-1][:, classes]
    return torch.einsum("qn,qhw->nhw", probabilities, mask_logits.sigmoid())


def _class_groups(masks: Tensor, classes: int, padded: Sequence[int], size: Sequence[int]) -> list[slice]:
    """Return which classes to score together: all, or few enough where a smaller output is wanted than the maps are."""
    values, at_once = padded[0] * padded[1], classes
    if 4 * size[0] * size[1] <= values:
        at_once = max(GROUP_VALUES.get(masks.device.type, 2**30) // values, 1)
    return [slice(first, first + at_once) for first in range(0, classes, at_once)]


def upsampled_scores(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], classes: slice = ALL_CLASSES
) -> Tensor:
    """``semantic_scores`` of the masks resized to ``size``, strip by strip: Q maps of that size never exist at once.

    class_logits (Q, N + 1), mask_logits (Q, h, w) -> (N, *size), or of some classes.
    """
    queries, h, w = mask_logits.shape
    scale = size[0] // h
    rows = max(STRIP_VALUES.get(mask_logits.device.type, 2**28) // (queries * scale * size[1]), 1)
    if is_traced() or rows >= h or size != (h * scale, w * scale):  # a graph wants no loop
        return semantic_scores(class_logits, resize(mask_logits, size), classes)
    strips = []
    for top in range(0, h, rows):
        bottom = min(top + rows, h)
        first, last = max(top - 1, 0), min(bottom + 1, h)  # interpolation looks one row further
        strip = mask_logits[None, :, first:last]
        strip = strip.contiguous(memory_format=torch.channels_last)  # resized in less time on a CPU
        strip = resize(strip, ((last - first) * scale, size[1]))[0]
        strip = strip[:, (top - first) * scale : (bottom - first) * scale]
        strips.append(semantic_scores(class_logits, strip, classes))
    return torch.cat(strips, 1)
