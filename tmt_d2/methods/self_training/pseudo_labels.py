"""What a mask classifier says about each pixel, as labels to learn from.

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

from tmt_d2.data.label_spaces import IGNORE
from tmt_d2.modeling.mask_former import semantic_scores
from tmt_d2.modeling.mask_logits import QueryOutputs
from tmt_d2.modeling.resize import resize
from tmt_d2.transferability.map import TransferabilityMap

logger = logging.getLogger(__name__)

BY_T = ("T", "1-T")
BY_CONFIDENCE = ("confident", "picture")
BINS = 200  # of a confidence between 0 and 1
NEVER = 2.0  # a confidence that no pixel reaches
MEMORY = 0.99  # of the counts after a step
STEPS_BETWEEN_LOOKS = 20
SUSPICIOUS = 0.5  # share of what a class does not have among the labels that it must have won to be a collapse


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
    """Per image of (B, N, h, w) the best class of each pixel, (H, W) long, and its probability, (H, W)."""
    for each in probabilities:  # one by one: N maps of full size of all images would be most of a step's memory
        confidence, labels = resize(each, size).max(0)
        yield labels, confidence


@dataclass(frozen=True)
class Trust:
    """What of the pseudo-labels counts, and how much.

    threshold: a pixel is confident if its probability is at least this. quantile, precision: or if it is at least what
        ``Statistics.thresholds`` has for its class. 0: none of this kind; without all, every pixel is confident.
    ignores: pixels that are not confident are ignored.
    weighs: masks by the mean of their pixels' weights: "nothing"; "confident": 1 where confident, else 0; "picture": of
        all pixels of a picture the share that is confident (DAFormer, arXiv 2111.14887); "T" or "1-T": see
        ``transferability_ranks``.
    no_object: "no object" counts by the share of pixels that are confident: what a query was to find may lie in the
        others.
    """

    threshold: float = 0.0
    quantile: float = 0.0
    precision: float = 0.0
    ignores: bool = False
    weighs: str = "nothing"
    no_object: bool = False

    @property
    def is_blind(self) -> bool:
        return not (self.asks_confidence or self.asks_t)

    def confident(self, labels: Tensor, confidence: Tensor, thresholds: Tensor) -> Tensor:
        """(H, W) bool. thresholds: (N,), of each class."""
        least = torch.full_like(thresholds, self.threshold)
        if self.quantile or self.precision:
            least = torch.minimum(thresholds, least) if self.threshold else thresholds
        return confidence >= least[labels]

    def entries(self, labels: Tensor, confident: Tensor, weights: Tensor) -> dict[str, Any]:
        """What a record says of its pseudo-labels, for ``MaskFormer.losses``. labels: (H, W) uint8."""
        if self.is_blind:
            return {"sem_seg": labels}
        return {
            "sem_seg": labels.masked_fill(~confident, IGNORE) if self.ignores else labels,
            "mask_weights": mask_weights(labels, weights),
            "no_object": float(confident.float().mean()) if self.no_object else 1.0,
        }

    @property
    def asks_t(self) -> bool:
        return self.weighs in BY_T

    @property
    def asks_confidence(self) -> bool:
        return self.ignores or self.no_object or self.weighs in BY_CONFIDENCE

    def weights(self, confident: Tensor, ranks: Tensor | None = None) -> Tensor:
        """(H, W) bool -> float. ranks: (H, W) of T, where ``asks_t``."""
        if ranks is not None:
            return 2 * (ranks if self.weighs == "T" else 1 - ranks)  # 1 on average
        if self.weighs == "nothing":
            return torch.ones_like(confident, dtype=torch.float32)
        weights = confident.float()
        return weights if self.weighs == "confident" else weights.mean().expand_as(weights)


def transferability_ranks(levels: Sequence[TransferabilityMap], size: tuple[int, int]) -> Tensor:
    """(B, *size): which share of its picture has a lower T than a pixel, the mean over levels. Ranks, because a
    confident discriminator's T is 0 or 1 almost everywhere."""
    ranks = [torch.stack(list(map(_ranks, -level.logits, level.valid))) for level in levels]  # T falls with the logit
    return torch.stack([resize(each[:, None], size)[:, 0] for each in ranks]).mean(0)


def _ranks(values: Tensor, valid: Tensor) -> Tensor:
    """(h, w) -> [0, 1], mean 1/2 over what is valid; 1/2 elsewhere. Of equal values the earlier is the lower."""
    ranks = torch.full_like(values, 0.5, dtype=torch.float32)
    order = values[valid].argsort(stable=True).argsort(stable=True)
    ranks[valid] = order / max(len(order) - 1, 1)
    return ranks


def mask_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """(256,): by class the mean weight of its pixels, 0 where it has none. labels: (H, W) uint8."""
    flat = labels.flatten().long()
    pixels = torch.bincount(flat, minlength=256)
    sums = torch.bincount(flat, weights.flatten().double(), minlength=256)  # float32 is 0.5 % off on large pictures
    return (sums / pixels.clamp(min=1)).float()


class Statistics(nn.Module):
    """Which classes and with what confidence the teacher has said lately, beside the classes of labels, and how often
    it was right where there is a label.

    Counts of a step are added up over micro-batches and processes and take effect after it, so that they do not depend
    on how the step is shared.
    """

    said: Tensor
    labelled: Tensor
    judged: Tensor
    _said_now: Tensor
    _labelled_now: Tensor
    _judged_now: Tensor

    def __init__(self, classes: int, quantile: float = 0.0, precision: float = 0.0, names: Sequence[str] = ()):
        """quantile, precision: what ``thresholds`` are of, one of them. names: of the classes, for messages."""
        super().__init__()
        self.names = names if len(names) == classes else [f"class {index}" for index in range(classes)]
        self.quantile, self.precision, self.steps, self.has_warned = quantile, precision, 0, False
        self.register_buffer("said", torch.zeros(classes, BINS, dtype=torch.float64))
        self.register_buffer("labelled", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("judged", torch.zeros(2, classes, BINS, dtype=torch.float64))  # wrong, right
        self.register_buffer("_said_now", torch.zeros_like(self.said), persistent=False)
        self.register_buffer("_labelled_now", torch.zeros_like(self.labelled), persistent=False)
        self.register_buffer("_judged_now", torch.zeros_like(self.judged), persistent=False)

    def note(self, labels: Tensor, confidence: Tensor) -> None:
        """Of one picture, (H, W) each."""
        self._said_now += self._counts(labels, confidence)

    def judge(self, labels: Tensor, confidence: Tensor, truth: Tensor) -> None:
        """What the teacher says of one labelled picture, (H, W) each; truth: train ids."""
        truth = truth.to(labels.device)
        for right in (0, 1):
            these = (truth != IGNORE) & ((truth == labels) == bool(right))
            self._judged_now[right] += self._counts(labels[these], confidence[these])

    def _counts(self, labels: Tensor, confidence: Tensor) -> Tensor:
        """(N, BINS)."""
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        return torch.bincount((labels * BINS + bins).flatten(), minlength=self.said.numel()).view_as(self.said)

    def note_label(self, sem_seg: Tensor) -> None:
        """Of one picture, train ids."""
        counts = torch.bincount(sem_seg.flatten().int(), minlength=IGNORE + 1)
        self._labelled_now += counts[: len(self.labelled)].to(self.labelled.device)

    def thresholds(self) -> Tensor:
        """(N,), of a class of which nothing is known 0.

        The confidence that a share ``quantile`` of a class's pixels does not reach. With ``precision`` the lowest from
        which on so many of the pixels that the teacher says to be of the class are; above 1 where there is none.
        """
        if not self.precision:
            below = self.said.cumsum(1)
            return (below < self.quantile * below[:, -1:]).sum(1) / BINS
        wrong, right = self.judged.flip(-1).cumsum(-1).flip(-1)  # from a confidence on
        some = wrong + right > 0
        enough = some & (right >= self.precision * (wrong + right))
        least = torch.where(enough.any(1), enough.int().argmax(1) / BINS, NEVER)
        return least.where(some[:, 0], 0.0)

    def after_step(self) -> None:
        for name in ("said", "labelled", "judged"):
            counts, now = self.get_buffer(name), self.get_buffer(f"_{name}_now")
            if comm.get_world_size() > 1:
                torch.distributed.all_reduce(now)
            counts.mul_(MEMORY).add_(now)
            now.zero_()
        self.steps += 1
        if not self.has_warned and self.steps % STEPS_BETWEEN_LOOKS == 0:
            self._look()

    def _look(self) -> None:
        """Warn, once, of a class that takes the pictures over: a teacher that only agrees with itself."""
        said, labelled = self.said.sum(1).tolist(), self.labelled.tolist()
        if not sum(said):
            return
        shares = [count / sum(said) for count in said]
        usual = [count / sum(labelled) if sum(labelled) else 0.0 for count in labelled]
        worst = max(range(len(said)), key=shares.__getitem__)
        if shares[worst] > usual[worst] + SUSPICIOUS * (1 - usual[worst]):
            self.has_warned = True
            logger.warning(
                "collapse? %.0f %% of the pseudo-labels are %s, of the labels %.0f %%: the teacher may only agree with "
                "itself; try TRANSFER.SELF_TRAINING.QUANTILE, WEIGHT or another BURN_IN",
                100 * shares[worst],
                self.names[worst],
                100 * usual[worst],
            )
