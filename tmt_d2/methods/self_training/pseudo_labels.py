"""What a mask classifier says about each pixel, as labels to learn from.

Letters: B images, Q queries, N classes, (h, w) the size of the masks, (H, W) that of the padded input.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tmt_d2.modeling.mask_former import semantic_scores
from tmt_d2.modeling.mask_logits import QueryOutputs
from tmt_d2.modeling.resize import resize


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
