"""Pseudo-labels: a class and a confidence for each pixel, from the predictions of a mask classifier.

Letters: B images, Q queries, N classes, (h, w) the size of the masks, (H, W) that of the padded input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import semantic_scores
from tmt_d2.modeling.mask_logits import QueryOutputs
from tmt_d2.modeling.ops.resize import resize

MEMORY = 0.99  # factor of the counts after a step
STEPS_BETWEEN_CHECKS = 20
LEAST_SHARE = 1e-3  # a class with fewer pseudo-labels counts as having this share
SUSPICIOUS = 0.5  # a collapse: share - expected share > 0.5 * (1 - expected share)


def marginals(outputs: QueryOutputs) -> Tensor:
    """Return the sum over queries of class times mask probability, divided by its sum over the classes, (B, N, h, w).

    The sum alone is no probability: queries overlap, and some pixels belong to none.
    """
    with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
        masks = outputs["pred_masks"]
        dense = torch.einsum("bqc,bchw->bqhw", masks.embeddings.float(), masks.features.float())
        scores = torch.stack(list(map(semantic_scores, outputs["pred_logits"].float(), dense)))
        return scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def balanced(probabilities: Tensor, counts: Tensor, exponent: float) -> Tensor:
    """Divide the probability of each class by its share to the power of ``exponent``, and normalize again.

    This is logit adjustment (arXiv 2007.07314) with the shares of the pseudo-labels: a model that leaves its domain
    predicts rare classes too rarely.

    Args:
        probabilities: (B, N, h, w). counts: (N,), of earlier pseudo-labels; all 0: nothing is changed.
    """
    if not counts.any():
        return probabilities
    factors = (counts / counts.sum()).clamp(min=LEAST_SHARE).pow(-exponent).to(probabilities)
    weighted = probabilities * factors[:, None, None]
    return weighted / weighted.sum(1, keepdim=True).clamp(min=torch.finfo(weighted.dtype).tiny)


def labels_and_confidence(probabilities: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each image of (B, N, h, w) the best class of each pixel, (H, W) long, and its probability, (H, W)."""
    for each in probabilities:  # one by one: N maps of full size of all images would be most of a step's memory
        confidence, labels = resize(each, size).max(0)
        yield labels, confidence


class PseudoLabel(NamedTuple):
    """Class of each pixel, (H, W) uint8; where it is confident, bool; and its weight, float."""

    label: Tensor
    confident: Tensor
    weights: Tensor


@dataclass(frozen=True)
class PseudoLabelPolicy:
    """Selection and weights of pseudo-labels.

    Attributes:
        threshold: a pixel is confident if its probability is at least this.
        ignores: pixels that are not confident are ignored.
        weight_by: weight of a mask, the mean over its pixels of: 1 ("none"); 1 where confident, else 0 ("pixel"); the
            share of confident pixels in the image ("image"; DAFormer, arXiv 2111.14887).
    """

    threshold: float = 0.0
    ignores: bool = False
    weight_by: str = "none"

    def pseudo_label(self, label: Tensor, confidence: Tensor) -> PseudoLabel:
        """label, confidence: (H, W), from ``labels_and_confidence``."""
        confident = confidence >= self.threshold
        return PseudoLabel(label.to(torch.uint8), confident, self.weights(confident))

    def weights(self, confident: Tensor) -> Tensor:
        """(H, W) bool -> (H, W) float, the weight of each pixel."""
        if self.weight_by == "none":
            return torch.ones_like(confident, dtype=torch.float32)
        weights = confident.float()
        return weights if self.weight_by == "pixel" else weights.mean().expand_as(weights)

    def entries(self, pseudo: PseudoLabel) -> dict[str, Any]:
        """Return the entries of a record that ``MaskFormer.losses`` reads."""
        label = pseudo.label.masked_fill(~pseudo.confident, IGNORE) if self.ignores else pseudo.label
        if not self.ignores and self.weight_by == "none":
            return {"sem_seg": label}
        return {"sem_seg": label, "mask_weights": mask_weights(pseudo.label, pseudo.weights)}


def mask_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean weight of the pixels of each class, (256,), 0 where it has none. labels: (H, W) uint8."""
    flat = labels.flatten().long()
    pixels = torch.bincount(flat, minlength=256)
    sums = torch.bincount(flat, weights.flatten().double(), minlength=256)  # float32 is 0.5 % off on large images
    return (sums / pixels.clamp(min=1)).float()


class CollapseMonitor(nn.Module):
    """Stops the run when one class takes over the pseudo-labels, against the labels or, without any, the first ones.

    Counts of a step are summed over micro-batches and processes. Both are running sums, (N,).
    """

    predicted: Tensor
    labelled: Tensor  # the name in checkpoints

    def __init__(self, class_names: Sequence[str]):
        super().__init__()
        self.class_names = class_names
        for name in ("predicted", "labelled"):
            self.register_buffer(name, torch.zeros(len(class_names), dtype=torch.float64))
            self.register_buffer(f"_{name}_now", torch.zeros(len(class_names), dtype=torch.float64), persistent=False)

    def add(self, name: str, labels: Tensor) -> None:
        """Count the classes of one image, (H, W). name: "predicted" or "labelled"."""
        counts = torch.bincount(labels.flatten().int(), minlength=IGNORE + 1)[: len(self.class_names)]
        now = self.get_buffer(f"_{name}_now")
        now += counts.to(now.device)

    def after_step(self, steps: int) -> None:
        """
        Args:
            steps: number of completed steps, this one included.

        Raises:
            UserError: a collapse, in every process.
        """
        for name in ("predicted", "labelled"):
            counts, now = self.get_buffer(name), self.get_buffer(f"_{name}_now")
            if comm.get_world_size() > 1:
                torch.distributed.all_reduce(now)
            if now.any():  # counts that only decay would round to 0
                counts.mul_(MEMORY).add_(now)
            now.zero_()
        if steps == STEPS_BETWEEN_CHECKS and not self.labelled.any():
            self.labelled.copy_(self.predicted)
        if steps % STEPS_BETWEEN_CHECKS == 0:
            self._check()

    def _check(self) -> None:
        predicted, labeled = self.predicted.tolist(), self.labelled.tolist()
        if not sum(predicted):
            return
        shares = [count / sum(predicted) for count in predicted]
        expected = [count / sum(labeled) if sum(labeled) else 0.0 for count in labeled]
        worst = max(range(len(shares)), key=shares.__getitem__)
        if shares[worst] > expected[worst] + SUSPICIOUS * (1 - expected[worst]):
            raise UserError(
                f"self-training has collapsed: {shares[worst]:.0%} of the pseudo-labels are {self.class_names[worst]}, "
                f"where {expected[worst]:.0%} are expected",
                key="SELF_TRAINING",
                hint="change PSEUDO_LABEL_WEIGHT or BURN_IN",
            )
