"""Pseudo-labels: a class and a confidence for each pixel, from the predictions of a mask classifier.

Letters: B images, Q queries, N classes, (h, w) the size of the masks, (H, W) that of the padded input.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.modeling.mask_former import semantic_scores
from tmt_d2.modeling.mask_logits import QueryOutputs
from tmt_d2.modeling.ops.resize import resize

logger = logging.getLogger(__name__)

MEMORY = 0.99  # factor of the counts after a step
STEPS_BETWEEN_CHECKS = 20
SUSPICIOUS = 0.5  # a collapse: a class has gained this share of what it lacks among the labels


def marginals(outputs: QueryOutputs) -> Tensor:
    """(B, N, h, w): sum over queries of class times mask probability, divided by its sum over the classes.

    Undivided it is no probability: queries overlap, and some pixels belong to none.
    """
    with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
        masks = outputs["pred_masks"]
        dense = torch.einsum("bqc,bchw->bqhw", masks.embeddings.float(), masks.features.float())
        scores = torch.stack(list(map(semantic_scores, outputs["pred_logits"].float(), dense)))
        return scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def labels_and_confidence(probabilities: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each image of (B, N, h, w) the best class of each pixel, (H, W) long, and its probability, (H, W)."""
    for each in probabilities:  # one by one: N maps of full size of all images would be most of a step's memory
        confidence, labels = resize(each, size).max(0)
        yield labels, confidence


@dataclass(frozen=True)
class PseudoLabelPolicy:
    """Which pseudo-labels count, and how much.

    Attributes:
        threshold: a pixel is confident if its probability is at least this.
        ignores: pixels that are not confident are ignored.
        weight_by: weight of a mask, the mean over its pixels of: 1 ("none"); 1 where confident, else 0
            ("pixel"); the share of confident pixels in the image ("image"; DAFormer, arXiv 2111.14887).
    """

    threshold: float = 0.0
    ignores: bool = False
    weight_by: str = "none"

    @property
    def uses_confidence(self) -> bool:
        return self.ignores or self.weight_by != "none"

    def entries(self, labels: Tensor, confident: Tensor, weights: Tensor) -> dict[str, Any]:
        """Return the entries of a record that ``MaskFormer.losses`` reads. labels: (H, W) uint8."""
        if not self.uses_confidence:
            return {"sem_seg": labels}
        return {
            "sem_seg": labels.masked_fill(~confident, IGNORE) if self.ignores else labels,
            "mask_weights": mask_weights(labels, weights),
        }

    def weights(self, confident: Tensor) -> Tensor:
        """(H, W) bool -> (H, W) float, the weight of each pixel."""
        if self.weight_by == "none":
            return torch.ones_like(confident, dtype=torch.float32)
        weights = confident.float()
        return weights if self.weight_by == "pixel" else weights.mean().expand_as(weights)


def mask_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """(256,): by class the mean weight of its pixels, 0 where it has none. labels: (H, W) uint8."""
    flat = labels.flatten().long()
    pixels = torch.bincount(flat, minlength=256)
    sums = torch.bincount(flat, weights.flatten().double(), minlength=256)  # float32 is 0.5 % off on large images
    return (sums / pixels.clamp(min=1)).float()


class CollapseMonitor(nn.Module):
    """Warns once when one class takes over the pseudo-labels: a teacher that only agrees with itself.

    Counts of a step are added up over micro-batches and processes, so that they do not depend on how it is shared.
    """

    predicted: Tensor
    labelled: Tensor

    def __init__(self, names: Sequence[str]):
        """names: of the classes."""
        super().__init__()
        self.names, self.steps, self.has_warned = names, 0, False
        for name in ("predicted", "labelled"):
            self.register_buffer(name, torch.zeros(len(names), dtype=torch.float64))
            self.register_buffer(f"_{name}_now", torch.zeros(len(names), dtype=torch.float64), persistent=False)

    def add(self, name: str, labels: Tensor) -> None:
        """Count the classes of one image, (H, W). name: "predicted" or "labelled"."""
        counts = torch.bincount(labels.flatten().int(), minlength=IGNORE + 1)[: len(self.names)]
        now = self.get_buffer(f"_{name}_now")
        now += counts.to(now.device)

    def after_step(self) -> None:
        for name in ("predicted", "labelled"):
            counts, now = self.get_buffer(name), self.get_buffer(f"_{name}_now")
            if comm.get_world_size() > 1:
                torch.distributed.all_reduce(now)
            counts.mul_(MEMORY).add_(now)
            now.zero_()
        self.steps += 1
        if not self.has_warned and self.steps % STEPS_BETWEEN_CHECKS == 0:
            self._check()

    def _check(self) -> None:
        predicted, labelled = self.predicted.tolist(), self.labelled.tolist()
        if not sum(predicted):
            return
        shares = [count / sum(predicted) for count in predicted]
        expected = [count / sum(labelled) if sum(labelled) else 0.0 for count in labelled]
        worst = max(range(len(shares)), key=shares.__getitem__)
        if shares[worst] > expected[worst] + SUSPICIOUS * (1 - expected[worst]):
            self.has_warned = True
            logger.warning(
                "collapse? %.0f %% of the pseudo-labels are %s, of the labels %.0f %%: the teacher may only agree with "
                "itself; try SELF_TRAINING.PSEUDO_LABEL_WEIGHT or another BURN_IN",
                100 * shares[worst],
                self.names[worst],
                100 * expected[worst],
            )
