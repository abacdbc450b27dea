"""Transferability scores without training: proxy A-distance, LEEP, OTCE.

Sources: Ben-David et al. 2010 (PAD); Nguyen et al., arXiv 2002.12462 (LEEP); Tan et al., arXiv 2103.13843 and
2109.15242 (OTCE, F-OTCE and its use for segmentation). Letters: N samples, K classes, D feature dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def proxy_a_distance(logits_source: Tensor, logits_target: Tensor) -> float:
    """2 (1 - 2 err), err = the balanced error of a domain classifier on held-out samples; in [-2, 2].

    0 = the domains cannot be told apart, 2 = perfectly separable.

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
    theta = torch.as_tensor(source_probabilities).double()
    labels = torch.as_tensor(target_labels).long()
    if theta.dim() != 2 or labels.shape != theta.shape[:1] or not len(labels):
        raise ValueError(f"leep needs (N, K) and (N,) with N >= 1, got {tuple(theta.shape)} and {tuple(labels.shape)}")
    _, labels = labels.unique(return_inverse=True)
    joint = theta.new_zeros(int(labels.max()) + 1, theta.shape[1]).index_add_(0, labels, theta) / len(labels)
    marginal = joint.sum(0)
    seen = marginal > 0  # a source class without mass would be 0 / 0
    conditional = joint[:, seen] / marginal[seen]  # P(y | z)
    return float((conditional[labels] * theta[:, seen]).sum(1).log().mean())


def otce(
    source_features: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_labels: Tensor,
    regularization: float = 0.1,
    weights: tuple[float, float, float] = (0.0, -1.0, 0.0),
) -> float:
    """OTCE = l1 W_D + l2 W_T + b; the default weights give F-OTCE = -W_T = -H(Y_t | Y_s), which needs no fitting.

    The optimal transport plan couples source and target samples by the cost ||f_s - f_t||^2 with uniform marginals.

    Args:
        source_features: (M, D); source_labels: (M,). target_features: (N, D); target_labels: (N,).
        regularization: entropic epsilon, relative to the mean cost (Sinkhorn in the log domain); 0 = exact plan.
        weights: (l1, l2, b).

    Returns:
        the score; F-OTCE lies in [-log(number of target classes), 0], higher = more transferable. W_D is in the units
        of the squared features.
    """
    import ot  # POT is slow to import and only scores need it

    fs, ft = torch.as_tensor(source_features).double(), torch.as_tensor(target_features).double()
    if fs.dim() != 2 or ft.dim() != 2 or fs.shape[1:] != ft.shape[1:] or not len(fs) or not len(ft):
        raise ValueError(f"otce needs (M, D) and (N, D) features, got {tuple(fs.shape)} and {tuple(ft.shape)}")
    cost = torch.cdist(fs, ft, compute_mode="donot_use_mm_for_euclid_dist").square()
    scale = cost.mean().clamp(min=torch.finfo(cost.dtype).tiny)
    a, b = torch.full_like(cost[:, 0], 1 / len(fs)), torch.full_like(cost[0], 1 / len(ft))
    relative = cost / scale
    if regularization > 0:
        plan = ot.bregman.sinkhorn_log(a, b, relative, regularization, numItermax=1000, stopThr=1e-9, warn=False)
    else:
        plan = ot.emd(a, b, relative)
    _, ys = torch.as_tensor(source_labels).long().unique(return_inverse=True)
    _, yt = torch.as_tensor(target_labels).long().unique(return_inverse=True)
    joint = cost.new_zeros(int(ys.max()) + 1, len(ft)).index_add_(0, ys, plan)
    joint = cost.new_zeros(int(yt.max()) + 1, len(joint)).index_add_(0, yt, joint.T).T  # P(y_s, y_t)
    joint = joint / joint.sum()
    source_marginal = joint.sum(1, keepdim=True)
    positive = joint > 0
    conditional_entropy = -(joint * (joint / source_marginal.clamp(min=1e-300)).log())[positive].sum()
    l1, l2, bias = weights
    return float(l1 * (cost * plan).sum() + l2 * conditional_entropy + bias)
