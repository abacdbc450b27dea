"""Semi-supervised and unsupervised adaptation: a student learns from labels and from what its teacher says.

Follow a batch: in ``prepare_batch`` the teacher labels the images without a label, parts of labelled ones are pasted
onto them and their colors change; ``forward`` takes the losses on both; ``after_update`` moves the teacher.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from tmt_d2.adaptation.method_training import MethodTraining
from tmt_d2.adaptation.self_training.feature_distance import feature_distance, thing_positions
from tmt_d2.adaptation.self_training.fourier import in_style_of
from tmt_d2.adaptation.self_training.mixing import paste, pasted
from tmt_d2.adaptation.self_training.pseudo_labels import (
    CollapseMonitor,
    PseudoLabelPolicy,
    labels_and_confidence,
    marginals,
)
from tmt_d2.adaptation.self_training.teacher import MovingAverage
from tmt_d2.adaptation.self_training.views import MaskedView, StrongView
from tmt_d2.data.datasets.registration import label_space_of
from tmt_d2.data.loaders import SOURCE_DOMAIN
from tmt_d2.errors import USER_ERRORS, UserError
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.mask_logits import DecoderOutputs, MaskLogits, QueryOutputs
from tmt_d2.utils.randomness import derived_seed, seeded

logger = logging.getLogger(__name__)

Record = dict[str, Any]
FOUNDATION_MODELS = ("dinov2", "dinov3", "clip", "siglip", "eva", "mae")  # in timm's names
STUDENT = "student"
MASKED = "masked_view"
VIEW_STREAM, MIX_STREAM, MASK_STREAM = 1, 2, 3  # of the draws for one sample


class SelfTraining(MethodTraining):
    """Prepared batches of labelled and unlabelled images -> the student's losses on labels, and "loss_pseudo".

    A record without a label has "labelled" False. The model that was given is the teacher: it is what is evaluated and
    saved. Without unlabelled pictures this is supervised training of which the moving average counts.
    """

    def __init__(
        self,
        model: MaskFormer,
        *,
        momentum: float,
        burn_in: int,
        warm_up: int = 0,
        weight: float,
        mixes: bool,
        view: StrongView,
        policy: PseudoLabelPolicy,
        masked: MaskedView | None = None,
        masked_weight: float = 1.0,
        beta: float = 0.0,
        class_names: Sequence[str] = (),
        feature_weight: float = 0.0,
        feature_weights: str = "",
        feature_classes: Sequence[int] = (),
    ):
        """
        Args:
            momentum, burn_in: of ``MovingAverage``. warm_up: in so many first steps unlabelled pictures are left out.
            weight: of the loss on pseudo-labels.
            mixes: paste classes of labelled pictures onto unlabelled ones. view: what the student sees of them.
            policy: which of the teacher's labels count, and how much.
            masked: the student also learns from this view of the unlabelled pictures, at masked_weight.
            beta: source pictures take the style of an unlabelled target picture, see ``in_style_of``; 0: as they are.
            class_names: for messages.
            feature_weight: of "loss_features", the distance of source pictures' features to those of the file
                feature_weights at positions of feature_classes, train ids.
        """
        super().__init__()
        self.teacher = model
        classes = model.sem_seg_head.num_classes
        known = len(class_names) == classes
        self.monitor = CollapseMonitor(class_names if known else [f"class {index}" for index in range(classes)])
        self.progress = nn.ModuleDict(
            {STUDENT: copy.deepcopy(model), "average": MovingAverage(momentum, burn_in), "monitor": self.monitor}
        )
        self.teacher.requires_grad_(False)
        self.warm_up, self.weight, self.mixes, self.view, self.policy = warm_up, weight, mixes, view, policy
        self.feature_weight, self.feature_weights = feature_weight, feature_weights
        self.feature_classes = feature_classes
        self.reference: nn.Module | None = None
        self.masked, self.masked_weight, self.beta = masked, masked_weight, beta

    @property
    def student(self) -> MaskFormer:
        return self.progress[STUDENT]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> SelfTraining:
        super().train(mode)
        self.teacher.eval()
        if self.reference is not None:
            self.reference.eval()
        return self

    def load_references(self, load: Callable[[str, nn.Module], object]) -> None:
        if self.feature_weight:
            other = copy.deepcopy(self.teacher)
            try:
                load(self.feature_weights, other)
            except USER_ERRORS as error:
                raise UserError(f"SELF_TRAINING.FEATURE_DISTANCE_CHECKPOINT: {error}") from error
            self.reference = other.backbone.requires_grad_(False).eval()

    def begin(self) -> None:
        self.student.load_state_dict(self.teacher.state_dict())

    def also_evaluated(self) -> Mapping[str, nn.Module]:
        return {STUDENT: self.student}

    def after_update(self) -> None:
        self.progress["average"].update(self.teacher, self.student)
        share_statistics(self.teacher)
        self.monitor.after_step()

    def count_masks(self, batched_inputs: Sequence[Record]) -> list[int]:
        """Number of masks of labels, of pseudo-labels, and of those of masked views, in a prepared batch."""
        return [self.student.count_masks(part) for part in self.parts_of(batched_inputs)]

    def parts_of(self, batched_inputs: Sequence[Record]) -> Parts:
        warms_up = self.progress["average"].steps < self.warm_up
        parts = parts_of(batched_inputs)
        return Parts(parts.labelled, [], []) if warms_up else parts

    def forward(self, batched_inputs: Sequence[Record], num_masks: Tensor | None = None) -> dict[str, Tensor]:
        """
        Args:
            batched_inputs: of ``prepare_batch``.
            num_masks: (3,), the means of ``count_masks`` over the calls that make one step.
        """
        student, parts = self.student, self.parts_of(batched_inputs)
        seen = [record for part in parts for record in part]
        images = student.preprocess(seen)
        features: list[Tensor] = []
        hook = student.backbone.register_forward_hook(lambda module, given, made: features.append(coarsest(made)))
        outputs = student.run(images, seen).outputs
        hook.remove()
        places = {id(record): place for place, record in enumerate(seen)}
        counts: Sequence[Tensor | None] = [None] * len(parts) if num_masks is None else num_masks.unbind()
        labelled, *others = (
            student.losses(outputs_of(outputs, [places[id(record)] for record in part]), part, images, count)
            if part
            else {}
            for part, count in zip(parts, counts)
        )
        losses = dict(labelled)
        for name, weight, values in zip(("loss_pseudo", "loss_masked"), (self.weight, self.masked_weight), others):
            if values:
                losses[name] = weight * torch.stack(list(values.values())).sum()
        sources = [place for place, record in enumerate(seen) if record.get("domain") == SOURCE_DOMAIN]
        if self.reference is not None and sources:
            with torch.no_grad():
                frozen = coarsest(self.reference(images.tensor[sources]))
            labels = student.padded_labels([seen[place] for place in sources], images)
            where = thing_positions(labels, self.feature_classes, (frozen.shape[-2], frozen.shape[-1]))
            losses["loss_features"] = self.feature_weight * feature_distance(features[0][sources], frozen, where)
        return losses

    @torch.no_grad()
    def prepare_batch(self, batched_inputs: Sequence[Record]) -> list[Record]:
        """Return copies of the records, the unlabelled ones with the teacher's "sem_seg" and the student's view."""
        records = [dict(record) for record in batched_inputs]
        donors, pictures, _ = self.parts_of(records)
        if not pictures:
            return records
        for place, donor in enumerate(donors):
            self.monitor.add("labelled", donor["sem_seg"])
            if self.beta and donor.get("domain") == SOURCE_DOMAIN:
                style = neighbour(place, donor["seed"], pictures, len(donors))["image"].to(self.teacher.device)
                donor["image"] = in_style_of(donor["image"].to(style.device), style, self.beta)
        for place, (record, (label, confidence)) in enumerate(zip(pictures, self._pseudo_labels(pictures))):
            self.monitor.add("predicted", label)
            confident = confidence >= self.policy.threshold
            weights = self.policy.weights(confident)
            label = label.to(torch.uint8)
            record["image"] = record["image"].to(self.teacher.device)
            if self.masked is not None:
                record[MASKED] = self._masked_view(record | self.policy.entries(label, confident, weights))
            if self.mixes:
                donor = neighbour(place, record["seed"], donors, len(pictures))
                mask, record["image"], label = self._mix(record, label, donor)
                confident, weights = confident | mask, weights.where(~mask, 1.0)
            record |= self.policy.entries(label, confident, weights)
            with seeded(record["seed"], VIEW_STREAM):
                record["image"] = self.view(record["image"])
        return records

    def _pseudo_labels(self, records: Sequence[Record]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the teacher's labels and confidence of each image, (H, W) each."""
        images = self.teacher.preprocess(records)
        probabilities = marginals(self.teacher.run(images, records).outputs)
        padded_size = (images.tensor.shape[-2], images.tensor.shape[-1])
        for (height, width), (label, confidence) in zip(
            images.image_sizes, labels_and_confidence(probabilities, padded_size)
        ):
            yield label[:height, :width], confidence[:height, :width]

    def _masked_view(self, record: Record) -> Record:
        assert self.masked is not None
        with seeded(record["seed"], MASK_STREAM):
            image = self.masked(self.view(record["image"]))
        return record | {"image": image, "seed": derived_seed(record["seed"], MASK_STREAM)}

    def _mix(self, record: Record, label: Tensor, donor: Record) -> tuple[Tensor, Tensor, Tensor]:
        """Where something of the donor was pasted, (H, W) bool, and picture and label with it."""
        pasted_label, pasted_image = (donor[key].to(self.teacher.device) for key in ("sem_seg", "image"))
        with seeded(record["seed"], MIX_STREAM):
            mask = pasted(pasted_label, label.shape)
        return mask, paste(record["image"].float(), pasted_image, mask), paste(label, pasted_label, mask)


@torch.no_grad()
def share_statistics(teacher: nn.Module) -> None:
    """Each process gathers normalisation statistics alone, and the teacher predicts with them: those of the first one
    count, so that there is one teacher, and the one that a checkpoint holds."""
    if comm.get_world_size() > 1:
        buffers = [buffer.view(-1) for buffer in teacher.buffers() if buffer.is_floating_point()]
        together = torch.cat(buffers)
        torch.distributed.broadcast(together, 0)
        torch._foreach_copy_(buffers, together.split([len(buffer) for buffer in buffers]))


def coarsest(maps: Mapping[str, Tensor]) -> Tensor:
    """Of a backbone's maps the smallest."""
    return min(maps.values(), key=lambda each: each.shape[-1] * each.shape[-2])


class Parts(NamedTuple):
    """Of a batch: records with a label, those without, and masked views of the latter, once they are prepared."""

    labelled: list[Record]
    unlabelled: list[Record]
    masked: list[Record]


def parts_of(batched_inputs: Sequence[Record]) -> Parts:
    unlabelled = [record for record in batched_inputs if not record.get("labeled", True)]
    labelled = [record for record in batched_inputs if record.get("labeled", True)]
    return Parts(labelled, unlabelled, [record[MASKED] for record in unlabelled if MASKED in record])


def neighbour(place: int, seed: int, others: Sequence[Record], count: int) -> Record:
    """One of ``others`` for the record at ``place`` among ``count``, of those that lie next to it in the batch.

    A batch is made of equal blocks (``StepSampler``), and what lies in another one is never chosen: so it is the same
    picture whatever processes and micro-batches share the batch.
    """
    first = place * len(others) // count
    behind = max((place + 1) * len(others) // count, first + 1)
    return others[first + derived_seed(seed, MIX_STREAM, 1) % (behind - first)]


def outputs_of(outputs: DecoderOutputs, images: Sequence[int]) -> DecoderOutputs:
    """Those of some images of the batch."""
    if len(images) == len(outputs["pred_logits"]):
        return outputs
    index = torch.tensor(images, device=outputs["pred_logits"].device)
    features = outputs["pred_masks"].features[index]  # of all layers the same

    def chosen(layer: QueryOutputs) -> QueryOutputs:
        masks = MaskLogits(layer["pred_masks"].embeddings[index], features)
        return {"pred_logits": layer["pred_logits"][index], "pred_masks": masks}

    return {**chosen(outputs), "aux_outputs": [chosen(layer) for layer in outputs["aux_outputs"]]}


def self_training(cfg: CfgNode, model: nn.Module) -> SelfTraining:
    """
    Raises:
        UserError: a setting that needs labels is on and no picture of a batch has one.
    """
    keys = cfg.SELF_TRAINING
    mixes = keys.MIX == "classmix" and keys.UNLABELED_RATIO > 0
    if mixes and not (keys.LABELED_RATIO or keys.SOURCE_RATIO):
        raise UserError(
            "SELF_TRAINING.MIX classmix pastes from labelled pictures, and LABELED_RATIO and SOURCE_RATIO are 0: "
            "set MIX none"
        )
    if keys.WARM_UP and not (keys.LABELED_RATIO or keys.SOURCE_RATIO):
        raise UserError(
            f"SELF_TRAINING.WARM_UP is {keys.WARM_UP}: only labels teach in it, "
            "and LABELED_RATIO and SOURCE_RATIO are 0"
        )
    if keys.FDA_BETA and not (keys.SOURCE_RATIO and keys.UNLABELED_RATIO):
        raise UserError(
            f"SELF_TRAINING.FDA_BETA is {keys.FDA_BETA}: it gives source pictures the style of unlabelled "
            "ones, and SOURCE_RATIO or UNLABELED_RATIO is 0"
        )
    policy = PseudoLabelPolicy(keys.CONFIDENCE_THRESHOLD, keys.IGNORE_UNCONFIDENT, keys.WEIGHT_BY)
    if keys.CONFIDENCE_THRESHOLD and not policy.uses_confidence:
        raise UserError(
            f"SELF_TRAINING.CONFIDENCE_THRESHOLD is {keys.CONFIDENCE_THRESHOLD} and nothing depends on which "
            "pixels are confident: set IGNORE_UNCONFIDENT True, or WEIGHT_BY pixel or image"
        )
    names = label_space_of(cfg.DATASETS.TRAIN[0]).classes.names if cfg.DATASETS.TRAIN else ()
    _check_features(cfg, names)
    assert isinstance(model, MaskFormer)
    return SelfTraining(
        model,
        momentum=keys.EMA_MOMENTUM,
        burn_in=round(keys.BURN_IN * cfg.SOLVER.MAX_ITER),
        warm_up=round(keys.WARM_UP * cfg.SOLVER.MAX_ITER),
        weight=keys.PSEUDO_LABEL_WEIGHT,
        mixes=mixes,
        masked=MaskedView(keys.MIC_MASK_RATIO, keys.MIC_BLOCK_SIZE, model.pixel_mean) if keys.MIC_WEIGHT else None,
        masked_weight=keys.MIC_WEIGHT,
        beta=keys.FDA_BETA,
        class_names=names,
        feature_weight=keys.FEATURE_DISTANCE_WEIGHT,
        feature_weights=keys.FEATURE_DISTANCE_CHECKPOINT,
        feature_classes=[index for index, name in enumerate(names) if name in keys.FEATURE_DISTANCE_CLASSES],
        policy=policy,
        view=StrongView(
            keys.COLOR_JITTER_PROB, keys.COLOR_JITTER_STRENGTH, keys.BLUR_PROB, bgr=cfg.INPUT.FORMAT == "BGR"
        ),
    )


def _check_features(cfg: CfgNode, names: Sequence[str]) -> None:
    keys, place = cfg.SELF_TRAINING, "SELF_TRAINING"
    if not keys.FEATURE_DISTANCE_WEIGHT:
        return
    if not keys.FEATURE_DISTANCE_CHECKPOINT:
        raise UserError(
            f"{place}.FEATURE_DISTANCE_WEIGHT is {keys.FEATURE_DISTANCE_WEIGHT}, FEATURE_DISTANCE_CHECKPOINT is empty"
            ": name the pretrained backbone, what MODEL.WEIGHTS was in the source stage"
        )
    if not keys.SOURCE_RATIO:
        raise UserError(
            f"{place}.FEATURE_DISTANCE_WEIGHT is of source pictures, and SOURCE_RATIO is 0: "
            "set FEATURE_DISTANCE_WEIGHT 0.0"
        )
    if not {*names} & {*keys.FEATURE_DISTANCE_CLASSES}:
        raise UserError(
            f"{place}.FEATURE_DISTANCE_CLASSES: none of {', '.join(keys.FEATURE_DISTANCE_CLASSES)} is a class of the "
            "data sets"
        )
    if cfg.MODEL.BACKBONE.NAME == "timm" and any(word in cfg.MODEL.TIMM.NAME for word in FOUNDATION_MODELS):
        logger.warning(
            "%s.FEATURE_DISTANCE_WEIGHT with %s: holding a foundation model to its own features is known to harm",
            place,
            cfg.MODEL.TIMM.NAME,
        )
