"""LEEP and OTCE fine-tuning: a transferability score of the source model is first raised by gradient ("alignment").

Both steps follow Tan et al. (arXiv 2207.05510). Settings that no publication fixes are keys of
TRANSFER.ALIGNMENT. Normalization statistics stay those of the source model.

Letters: B images, N labeled pixels, K classes, C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tmt_d2.adaptation.supervised import FineTuning
from tmt_d2.adaptation.task import Record, Split, Task, Test, loader_options
from tmt_d2.config import replace_keys
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.loaders import TARGET_DOMAIN, build_paired_loader
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import MaskFormer, semantic_scores
from tmt_d2.modeling.mask_logits import DecoderOutputs, QueryOutputs, outputs_of
from tmt_d2.transferability.scores import leep_objective, relative_cost, squared_distances, target_given_source_entropy


class Pixels(NamedTuple):
    """Labeled pixels of a batch: image, row and column in the padded input, and train id of each, (N,) long."""

    image: Tensor
    row: Tensor
    column: Tensor
    label: Tensor


class Alignment(FineTuning):
    """Labeled batches -> "loss_score", and "loss_segmentation" if ``weight`` is below 1."""

    fine_tunes = False
    measures_splits = False
    requires_head = True
    scores_predictions: ClassVar[bool]  # the score needs the decoder's outputs
    model: MaskFormer

    def __init__(
        self,
        model: MaskFormer,
        *,
        weight: float,
        pixels: int,
        epsilon: float,
        sinkhorn_iterations: int,
    ):
        """
        Args:
            pixels: labeled pixels per domain and forward pass, see ``pixels_of_a_call``.
            others: as the keys of TRANSFER.ALIGNMENT.
        """
        super().__init__(model)
        self.weight, self.pixels = weight, pixels
        self.epsilon, self.sinkhorn_iterations = epsilon, sinkhorn_iterations

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> Task:
        alignment = cfg.TRANSFER.ALIGNMENT
        assert isinstance(model, MaskFormer)
        return cls(
            model,
            weight=alignment.WEIGHT,
            pixels=pixels_of_a_call(cfg),
            epsilon=alignment.EPSILON,
            sinkhorn_iterations=alignment.SINKHORN_ITERATIONS,
        )

    def train(self, mode: bool = True) -> Alignment:
        super().train(mode)
        self.model.eval()
        return self

    def losses(self, records: Sequence[Record], num_masks: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of target images; OTCE: half source, half target by "domain"."""
        model = self.model
        images = model.preprocess(records)
        outputs: DecoderOutputs | None = None
        if self.weight < 1 or self.scores_predictions:
            result = model.run(images, records)
            inputs, outputs = result.inputs, result.outputs
        else:
            inputs = model.encode(images)
        labels = model.padded_labels(records, images)
        domain = [_domain(record) for record in records]
        is_target = torch.tensor([value == TARGET_DOMAIN for value in domain], device=model.device)[:, None, None]
        pixels = draw_pixels(labels.where(is_target, IGNORE), self.pixels)
        if len(pixels.label):
            score = self.score(inputs.mask_features, outputs, pixels, labels.where(~is_target, IGNORE))
        else:  # crops without a labeled pixel
            score = _zero(inputs.mask_features, outputs)
        losses = {"loss_score": -self.weight * score}
        if self.weight < 1:
            assert outputs is not None
            indices = [index for index, value in enumerate(domain) if value == TARGET_DOMAIN]
            targets = [records[index] for index in indices]
            segmentation = model.losses(outputs_of(outputs, indices), targets, images, num_masks)
            losses["loss_segmentation"] = (1 - self.weight) * torch.stack(list(segmentation.values())).sum()
        return losses

    def count_masks(self, records: Sequence[Record]) -> int:
        return self.model.count_masks([record for record in records if _domain(record) == TARGET_DOMAIN])

    @abstractmethod
    def score(
        self, mask_features: Tensor, outputs: DecoderOutputs | None, pixels: Pixels, source_labels: Tensor
    ) -> Tensor:
        """
        Args:
            mask_features: (B, C, h, w). pixels: of target images.
            source_labels: (B, H, W) train ids; ``IGNORE`` in target images.
        """

    def evaluate(self, cfg: CfgNode, test: Test) -> dict[str, Any]:
        return {}


class LeepAlignment(Alignment):
    scores_predictions = True

    def score(
        self, mask_features: Tensor, outputs: DecoderOutputs | None, pixels: Pixels, source_labels: Tensor
    ) -> Tensor:
        assert outputs is not None
        return leep_objective(class_probabilities(outputs, pixels, source_labels.shape[-2:]), pixels.label)


class OtceAlignment(Alignment):
    """F-OTCE, on the features before the decoder."""

    scores_predictions = False

    def __init__(self, model: MaskFormer, *, weight: float, **settings: Any):
        super().__init__(model, weight=weight, **settings)
        if weight == 1:
            model.sem_seg_head.predictor.requires_grad_(False)  # the score does not depend on it

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        data, images = cfg.DATASETS, cfg.SOLVER.IMS_PER_BATCH
        options = loader_options(cfg) | {"labels": cls.label_choice(cfg)}
        return build_paired_loader(data.SOURCE_TRAIN, data.TRAIN, cls.build_mapper(cfg), images, **options)

    def score(
        self, mask_features: Tensor, outputs: DecoderOutputs | None, pixels: Pixels, source_labels: Tensor
    ) -> Tensor:
        source = draw_pixels(source_labels, self.pixels)
        if not len(source.label):
            return _zero(mask_features)
        features = [pixel_features(mask_features, each, source_labels.shape[-2:]) for each in (source, pixels)]
        with torch.autocast(mask_features.device.type, enabled=False):
            cost = relative_cost(squared_distances(features[0].float(), features[1].float()))
            plan = sinkhorn_plan(cost, self.epsilon, self.sinkhorn_iterations)
            return -target_given_source_entropy(plan, source.label, pixels.label)


class Leep(FineTuning):
    name = "leep"
    about = "raise LEEP first, then as full"
    alignment: ClassVar[type[Alignment]] = LeepAlignment

    @classmethod
    def preparation(cls, cfg: CfgNode) -> tuple[type[Task], CfgNode] | None:
        """Return the alignment in OUTPUT_DIR/alignment, or None if TRANSFER.ALIGNMENT.ITERATIONS is 0."""
        alignment = cfg.TRANSFER.ALIGNMENT
        if not alignment.ITERATIONS:
            return None
        values = {
            "OUTPUT_DIR": str(Path(cfg.OUTPUT_DIR) / "alignment"),
            "SOLVER.MAX_ITER": alignment.ITERATIONS,
            "SOLVER.BASE_LR": alignment.BASE_LR,
            "TEST.EVAL_PERIOD": 0,
        }
        return cls.alignment, replace_keys(cfg, values)


class Otce(Leep):
    name = "otce"
    about = "raise F-OTCE first, then as full"
    alignment = OtceAlignment

    @classmethod
    def training_splits(cls, cfg: CfgNode) -> list[Split]:
        return [Split("TRAIN"), Split("SOURCE_TRAIN")]


def _domain(record: Record) -> int:
    return int(record.get("domain", TARGET_DOMAIN))


def _zero(mask_features: Tensor, outputs: DecoderOutputs | None = None) -> Tensor:
    """Return 0 with gradient 0 for all that a score has a gradient for; data-parallel training waits for each."""
    zero = mask_features.sum() * 0
    if outputs is not None:
        zero = zero + outputs["pred_logits"].sum() * 0 + outputs["pred_masks"].embeddings.sum() * 0
    return zero


def sinkhorn_plan(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return the entropic transport plan with uniform marginals, (M, N), by a fixed number of log-domain iterations."""
    import ot  # POT is slow to import and only scores need it

    a, b = torch.full_like(cost[:, 0], 1 / len(cost)), torch.full_like(cost[0], 1 / cost.shape[1])
    return ot.bregman.sinkhorn_log(a, b, cost, epsilon, numItermax=iterations, stopThr=0.0, warn=False)


def draw_pixels(labels: Tensor, number: int, generator: torch.Generator | None = None) -> Pixels:
    """Draw at most ``number`` labeled pixels of (B, H, W), each subset equally likely."""
    places = (labels != IGNORE).nonzero()
    chosen = torch.randperm(len(places), generator=generator)[:number]  # on the CPU: the same on every device
    image, row, column = places[chosen.to(places.device)].unbind(1)
    return Pixels(image, row, column, labels[image, row, column])


def pixel_features(features: Tensor, pixels: Pixels, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) of an input of ``size`` -> (N, C): the entry whose cell the pixel lies in."""
    h, w = features.shape[-2:]
    return features[pixels.image, :, pixels.row * h // size[0], pixels.column * w // size[1]]


def class_probabilities(outputs: QueryOutputs, pixels: Pixels, size: Sequence[int]) -> Tensor:
    """Return the model's semantic scores at the pixels, (N, K), each row divided by its sum."""
    masks = outputs["pred_masks"]
    features = pixel_features(masks.features, pixels, size)
    scores = features.new_zeros(len(features), outputs["pred_logits"].shape[-1] - 1, dtype=torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        for index, (logits, embeddings) in enumerate(zip(outputs["pred_logits"].float(), masks.embeddings.float())):
            own = (pixels.image == index).nonzero()[:, 0]
            mask_logits = embeddings @ features[own].float().T
            scores = scores.index_copy(0, own, semantic_scores(logits, mask_logits[:, None])[:, 0].T)
    return scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def pixels_of_a_call(cfg: CfgNode) -> int:
    """Return the share of TRANSFER.ALIGNMENT.PIXELS, which are per step, of one micro-batch of a process."""
    pixels, calls = cfg.TRANSFER.ALIGNMENT.PIXELS, comm.get_world_size() * cfg.SOLVER.ACCUMULATION_STEPS
    if pixels < calls:
        raise UserError(
            "processes times SOLVER.ACCUMULATION_STEPS share them",
            key="TRANSFER.ALIGNMENT.PIXELS",
            value=pixels,
            hint=f"set it to at least {calls}",
        )
    return pixels // calls
