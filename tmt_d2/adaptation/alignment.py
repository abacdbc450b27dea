"""The alignment step of ``leep`` and ``otce``: raise a transferability score of the source model by gradient.

It runs before fine-tuning, on labelled pixels. The two steps are those of Tan et al. (arXiv 2207.05510); what no
publication fixes is a key of TRANSFER.ALIGNMENT and is our reading. Normalisation statistics stay those of the source:
the score is that of the model as it predicts.

Letters: B images, N labelled pixels, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tmt_d2.adaptation.methods import method_of
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.labeled import LabelChoice
from tmt_d2.data.loaders import TARGET_DOMAIN, build_paired_loader, build_train_loader
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import MaskFormer, semantic_scores
from tmt_d2.modeling.mask_logits import DecoderOutputs, QueryOutputs
from tmt_d2.transferability.scores import leep_objective, relative_cost, squared_distances, target_given_source_entropy

SCORES = ("leep", "otce")  # that can be raised


class Pixels(NamedTuple):
    """Labelled pixels of a batch: image, row, column and train id of each, (N,) long; rows and columns are those of
    the padded input."""

    image: Tensor
    row: Tensor
    column: Tensor
    label: Tensor


class AlignmentTraining(nn.Module):
    """Labelled batches -> "loss_score", and "loss_segmentation" where the score has not all the weight."""

    def __init__(
        self,
        model: MaskFormer,
        score: str,
        *,
        weight: float,
        pixels: int,
        epsilon: float,
        sinkhorn_iterations: int,
        differentiate_plan: bool,
    ):
        """
        Args:
            score: "leep": batches of target images. "otce": half source, half target, told apart by "domain".
            pixels: labelled ones per domain and call, see ``pixels_of_a_call``.
            weight, ...: the keys of TRANSFER.ALIGNMENT.
        """
        super().__init__()
        if score not in SCORES:
            raise UserError(f"score is {score!r}: choose {' or '.join(SCORES)}")
        if score == "otce" and weight == 1:
            model.sem_seg_head.predictor.requires_grad_(False)  # the score is on features before it
        self.model, self.score, self.weight, self.pixels = model, score, weight, pixels
        self.epsilon, self.sinkhorn_iterations = epsilon, sinkhorn_iterations
        self.differentiate_plan = differentiate_plan

    def train(self, mode: bool = True) -> AlignmentTraining:
        super().train(mode)
        self.model.eval()
        return self

    def count_masks(self, batched_inputs: Sequence[Mapping[str, Any]]) -> int:
        return self.model.count_masks(batched_inputs)

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]], num_masks: Tensor | None = None
    ) -> dict[str, Tensor]:
        """num_masks: of the segmentation loss, see ``MaskFormer``."""
        model = self.model
        images = model.preprocess(batched_inputs)
        outputs: DecoderOutputs | None = None
        if self.score == "leep" or self.weight < 1:
            passed = model.run(images, batched_inputs)
            inputs, outputs = passed.inputs, passed.outputs
        else:
            inputs = model.encode(images)  # F-OTCE is on features before the decoder
        labels = model.padded_labels(batched_inputs, images)
        domain = [record.get("domain", TARGET_DOMAIN) for record in batched_inputs]
        target = torch.tensor([value == TARGET_DOMAIN for value in domain], device=model.device)
        chosen = draw_pixels(labels.where(target[:, None, None], IGNORE), self.pixels)
        if not len(chosen.label):  # crops without a labelled pixel
            score = _zero(inputs.mask_features, outputs)
        elif self.score == "leep":
            assert outputs is not None
            score = leep_objective(class_probabilities(outputs, chosen, images.tensor.shape[-2:]), chosen.label)
        else:
            others = draw_pixels(labels.where(~target[:, None, None], IGNORE), self.pixels)
            score = self._f_otce(inputs.mask_features, others, chosen, images.tensor.shape[-2:])
        losses = {"loss_score": -self.weight * score}
        if self.weight < 1:
            assert outputs is not None
            segmentation = torch.stack(list(model.losses(outputs, batched_inputs, images, num_masks).values())).sum()
            losses["loss_segmentation"] = (1 - self.weight) * segmentation
        return losses

    def _f_otce(self, mask_features: Tensor, source: Pixels, target: Pixels, size: Sequence[int]) -> Tensor:
        if not len(source.label):
            return _zero(mask_features)
        features = [pixel_features(mask_features, pixels, size) for pixels in (source, target)]
        with torch.autocast(mask_features.device.type, enabled=False):
            cost = relative_cost(squared_distances(features[0].float(), features[1].float()))
            plan = sinkhorn_plan(cost, self.epsilon, self.sinkhorn_iterations, self.differentiate_plan)
            return -target_given_source_entropy(plan, source.label, target.label)


def _zero(mask_features: Tensor, outputs: DecoderOutputs | None = None) -> Tensor:
    """0 with the gradient 0 for all that a score would have one for: data-parallel training waits for each."""
    zero = mask_features.sum() * 0
    if outputs is not None:
        zero = zero + outputs["pred_logits"].sum() * 0 + outputs["pred_masks"].embeddings.sum() * 0
    return zero


def sinkhorn_plan(cost: Tensor, epsilon: float, iterations: int, differentiate: bool) -> Tensor:
    """Entropic transport with uniform marginals, (M, N), by a fixed number of iterations in the log domain.

    Args:
        differentiate: gradients through the iterations, or else with the dual potentials as constants.
    """
    import ot  # POT is slow to import and only scores need it

    a, b = torch.full_like(cost[:, 0], 1 / len(cost)), torch.full_like(cost[0], 1 / cost.shape[1])
    with torch.set_grad_enabled(differentiate and torch.is_grad_enabled()):
        plan, log = ot.bregman.sinkhorn_log(
            a, b, cost, epsilon, numItermax=iterations, stopThr=0.0, log=True, warn=False
        )
    if differentiate:
        return plan
    return (log["log_u"][:, None] + log["log_v"] - cost / epsilon).exp()


def draw_pixels(labels: Tensor, number: int, generator: torch.Generator | None = None) -> Pixels:
    """At most ``number`` labelled pixels of (B, H, W), each set of them equally likely."""
    places = (labels != IGNORE).nonzero()
    chosen = torch.randperm(len(places), generator=generator)[:number]  # on the CPU: the same on every device
    image, row, column = places[chosen.to(places.device)].unbind(1)
    return Pixels(image, row, column, labels[image, row, column])


def pixel_features(features: Tensor, pixels: Pixels, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) of an input of ``size`` -> (N, C): the entry whose cell the pixel lies in."""
    h, w = features.shape[-2:]
    return features[pixels.image, :, pixels.row * h // size[0], pixels.column * w // size[1]]


def class_probabilities(outputs: QueryOutputs, pixels: Pixels, size: Sequence[int]) -> Tensor:
    """(N, K): the model's semantic scores at the pixels, each row divided by its sum."""
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
    """The share that a micro-batch of a process has of TRANSFER.ALIGNMENT.PIXELS, which are a step's."""
    pixels, calls = cfg.TRANSFER.ALIGNMENT.PIXELS, comm.get_world_size() * cfg.SOLVER.ACCUMULATION_STEPS
    if pixels < calls:
        raise UserError(
            f"TRANSFER.ALIGNMENT.PIXELS is {pixels}: {comm.get_world_size()} process(es) times "
            f"SOLVER.ACCUMULATION_STEPS {cfg.SOLVER.ACCUMULATION_STEPS} share them, so it must be at least {calls}"
        )
    return pixels // calls


def build_alignment_loader(cfg: CfgNode, seed: int | None) -> DataLoader:
    """Labelled target images that ``LabelChoice`` admits; for ``otce`` half of a batch is labelled source images."""
    mapper, batch_size = SemanticMapper(cfg, is_train=True), cfg.SOLVER.IMS_PER_BATCH
    choices: dict[str, Any] = {
        "labels": LabelChoice.from_config(cfg),
        "seed": seed,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }
    if method_of(cfg).reads_source:
        return build_paired_loader(cfg.DATASETS.SOURCE_TRAIN, cfg.DATASETS.TRAIN, mapper, batch_size, **choices)
    return build_train_loader(cfg.DATASETS.TRAIN, mapper, batch_size, **choices)
