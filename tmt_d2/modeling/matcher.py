"""Bipartite matching of queries to the masks of an image (DETR; costs of Mask2Former, arXiv 2112.01527).

Letters: L decoder outputs, B images, Q queries, T targets of an image, P sampled points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tmt_d2.errors import UserError
from tmt_d2.modeling.ops.linear import inner

WORST = 1e6  # far above any cost of finite outputs
EPS = 1e-6  # least value of a divisor that may be 0


def matching_costs(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    masks: Tensor,
    *,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    point_weights: Tensor | None = None,
) -> Tensor:
    """Cost of giving each query each target: - class probability, binary cross-entropy and dice on sampled points.

    Args:
        class_logits: (L, Q, N + 1). mask_logits: (L, Q, P). labels: (T,) long. masks: (T, P) in [0, 1].
        point_weights: (P,) in [0, 1], not less than the sum of the masks at each point; None = 1.

    Returns:
        (L, Q, T), float32
    """
    logits, masks = mask_logits.float(), masks.float()
    class_cost = -class_logits.float().softmax(-1)[..., labels]
    # -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)) = softplus(x) - t x, finite for every finite x
    points = logits.shape[-1] if point_weights is None else point_weights.sum().clamp(min=EPS)
    mask_cost = (_total(F.softplus(logits), point_weights) - inner(logits, masks)) / points
    probabilities = logits.sigmoid()
    overlap = 2 * inner(probabilities, masks)
    total = _total(probabilities, point_weights) + masks.sum(-1)
    dice_cost = 1 - (overlap + 1) / (total + 1)
    return class_weight * class_cost + mask_weight * mask_cost + dice_weight * dice_cost


def _total(values: Tensor, point_weights: Tensor | None) -> Tensor:
    """(L, Q, P) -> (L, Q, 1): the weighted sum over points."""
    return values.sum(-1, keepdim=True) if point_weights is None else inner(values, point_weights[None])


def match(costs: Sequence[Tensor]) -> list[np.ndarray]:
    """Cheapest assignment for every image and decoder output, after a single transfer of all costs to the host.

    A cost that is not finite counts as very high. It is no error here: the losses of these outputs are not finite
    either, which is an error that all processes see, or with float16 a step that the gradient scaler passes over.

    Args:
        costs: per image (L, Q, T), T <= Q.

    Returns:
        per image (L, T) int64: the query that each target got.

    Raises:
        UserError: an image has more targets than there are queries.
    """
    if not costs:
        return []
    flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    flat = np.nan_to_num(flat, nan=WORST, posinf=WORST, neginf=WORST)
    assignments, start = [], 0
    for cost in costs:
        outputs, queries, targets = cost.shape
        if targets > queries:
            message = f"an image has {targets} classes, and each needs a query of its own"
            raise UserError(message, key="MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", value=queries)
        block = flat[start : start + cost.numel()].reshape(outputs, queries, targets)
        start += cost.numel()
        chosen = np.empty((outputs, targets), np.int64)
        for output in range(outputs):
            rows, columns = linear_sum_assignment(block[output])
            chosen[output, columns] = rows
        assignments.append(chosen)
    return assignments
