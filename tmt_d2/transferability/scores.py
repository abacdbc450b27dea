"""Transferability scores without training: proxy A-distance, LEEP, OTCE.

Sources: Ben-David et al. 2010 (PAD); Nguyen et al., arXiv 2002.12462 (LEEP); Tan et al., arXiv 2103.13843 and
2109.15242 (OTCE, F-OTCE and its use for segmentation). Letters: N samples, K classes, D feature dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def proxy_a_distance(logits_source: Tensor, logits_target: Tensor) -> float:
    """2 (1 - 2 err), err = the balanced error of a domain classifier on held-out samples; in [-2, 2].

    0 = the domains cannot be distinguished, 2 = perfectly separable.

    Args:
        logits_source, logits_target: any shape, logits of "is from the target"; a logit of exactly 0 is half an error.
    """
    source, target = logits_source.flatten().double(), logits_target.flatten().double()
    if not len(source) or not len(target):
        raise ValueError(f"proxy A-distance needs samples of both domains, got {len(source)} and {len(target)}")
    if torch.isnan(source).any() or torch.isnan(target).any():
        raise ValueError("proxy A-distance got a logit that is not a number")
    error_source = (source > 0).double().mean() + 0.5 * (source == 0).double().mean()
    error_target = (target < 0).double().mean() + 0.5 * (target == 0).double().mean()
    error = (error_source + error_target) / 2
    return float(2 * (1 - 2 * error))


def leep(source_probabilities: Tensor, target_labels: Tensor) -> float:
    """LEEP = mean log sum_z P(y_i | z) theta(x_i)_z, <= 0; higher = more transferable.

    Args:
        source_probabilities: (N, K) float, the source model's softmax over its own classes z on target samples.
        target_labels: (N,) long, labels y of the target.
    """
    return float(leep_objective(torch.as_tensor(source_probabilities).double(), torch.as_tensor(target_labels).long()))


def leep_objective(theta: Tensor, labels: Tensor) -> Tensor:
    """``leep`` as a scalar tensor with a gradient; theta (N, K) float, labels (N,) long."""
    if theta.dim() != 2 or labels.shape != theta.shape[:1] or not len(labels):
        raise ValueError(f"leep needs (N, K) and (N,) with N >= 1, got {tuple(theta.shape)} and {tuple(labels.shape)}")
    _, labels = labels.unique(return_inverse=True)
    joint = theta.new_zeros(int(labels.max()) + 1, theta.shape[1]).index_add(0, labels, theta) / len(labels)
    marginal = joint.sum(0)
    seen = marginal > 0  # a source class without mass would be 0 / 0
    conditional = joint[:, seen] / marginal[seen]  # P(y | z)
    return (conditional[labels] * theta[:, seen]).sum(1).log().mean()


def otce(
    source_features: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_labels: Tensor,
    regularization: float = 0.1,
) -> float:
    """F-OTCE = -H(Y_t | Y_s), in [-log(number of target classes), 0]; higher = more transferable.

    The optimal transport plan couples source and target samples by the cost ||f_s - f_t||^2 with uniform marginals.

    Args:
        source_features: (M, D); source_labels: (M,). target_features: (N, D); target_labels: (N,).
        regularization: entropic epsilon, relative to the mean cost (Sinkhorn in the log domain); 0 = exact plan.
    """
    cost = squared_distances(torch.as_tensor(source_features).double(), torch.as_tensor(target_features).double())
    plan = transport_plan(cost, regularization)
    return -float(target_given_source_entropy(plan, source_labels, target_labels))


def jc_otce(
    source_features: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_labels: Tensor,
    regularization: float = 0.1,
    per_class: int = 64,
) -> float:
    """JC-OTCE = -H(Y_t | Y_s) under the cost ||f_s - f_t||^2 / 2 + W(P_ys, P_yt) / 2.

    W is the exact transport cost between the features of class y_s in the source and of class y_t in the target.

    Args:
        as ``otce``; per_class: W is taken on at most this many samples of each class, evenly spread over their order.
    """
    import ot

    cost = squared_distances(torch.as_tensor(source_features).double(), torch.as_tensor(target_features).double())
    if (len(source_labels), len(target_labels)) != tuple(cost.shape):
        raise ValueError(
            f"jc_otce got {len(source_labels)} and {len(target_labels)} labels of {tuple(cost.shape)} samples"
        )
    source_ids, ys = torch.as_tensor(source_labels).long().unique(return_inverse=True)
    target_ids, yt = torch.as_tensor(target_labels).long().unique(return_inverse=True)
    source_rows = [_at_most((ys == index).nonzero()[:, 0], per_class) for index in range(len(source_ids))]
    target_rows = [_at_most((yt == index).nonzero()[:, 0], per_class) for index in range(len(target_ids))]
    between = cost.new_tensor(
        [[float(ot.emd2([], [], cost[rows][:, columns].numpy())) for columns in target_rows] for rows in source_rows]
    )
    plan = transport_plan(0.5 * cost + 0.5 * between[ys][:, yt], regularization)
    return -float(target_given_source_entropy(plan, ys, yt))


def _at_most(indices: Tensor, limit: int) -> Tensor:
    if len(indices) <= limit:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, limit).round().long()]


def squared_distances(source: Tensor, target: Tensor) -> Tensor:
    """(M, D), (N, D) -> (M, N)."""
    if source.dim() != 2 or target.dim() != 2 or source.shape[1:] != target.shape[1:] or not len(source) * len(target):
        raise ValueError(f"otce needs (M, D) and (N, D) features, got {tuple(source.shape)} and {tuple(target.shape)}")
    difference = torch.cdist(source, target, compute_mode="donot_use_mm_for_euclid_dist")
    return difference.square()


def transport_plan(cost: Tensor, regularization: float) -> Tensor:
    """The coupling of uniform marginals with the least cost, (M, N); see ``otce`` for the regularization."""
    import ot  # POT is slow to import and only scores need it

    relative = relative_cost(cost)
    a, b = torch.full_like(cost[:, 0], 1 / len(cost)), torch.full_like(cost[0], 1 / cost.shape[1])
    if regularization == 0:
        return ot.emd(a, b, relative)
    return ot.bregman.sinkhorn_log(a, b, relative, regularization, numItermax=1000, stopThr=1e-9, warn=False)


def relative_cost(cost: Tensor) -> Tensor:
    return cost / cost.mean().clamp(min=torch.finfo(cost.dtype).tiny)


def target_given_source_entropy(plan: Tensor, source_labels: Tensor, target_labels: Tensor) -> Tensor:
    """W_T = H(Y_t | Y_s), a scalar with a gradient; plan (M, N), source_labels (M,), target_labels (N,)."""
    if (len(source_labels), len(target_labels)) != tuple(plan.shape):
        raise ValueError(
            f"otce got {len(source_labels)} and {len(target_labels)} labels "
            f"of {plan.shape[0]} and {plan.shape[1]} samples"
        )
    _, ys = torch.as_tensor(source_labels, device=plan.device).long().unique(return_inverse=True)
    _, yt = torch.as_tensor(target_labels, device=plan.device).long().unique(return_inverse=True)
    joint = plan.new_zeros(int(ys.max()) + 1, plan.shape[1]).index_add(0, ys, plan)
    joint = plan.new_zeros(int(yt.max()) + 1, len(joint)).index_add(0, yt, joint.T).T  # P(y_s, y_t)
    joint = joint / joint.sum()
    marginal = joint.sum(1, keepdim=True).expand_as(joint)
    positive = joint > 0
    return -(joint[positive] * (joint[positive] / marginal[positive]).log()).sum()
