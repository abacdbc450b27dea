"""Criteria, outputs of a decoder and targets, made up."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tmt_d2.modeling import SetCriterion
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.modeling.targets import MaskTargets

CLASSES = 3
POINTS = 8


def make_criterion(aux: int = 0, points: int = POINTS, **weights: float) -> SetCriterion:
    values = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "no_object_weight": 0.1, **weights}
    return SetCriterion(
        CLASSES,
        num_aux_outputs=aux,
        num_points=points,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        **values,
    )


def make_outputs(layers: int = 3, B: int = 2, Q: int = 5, C: int = 4, seed: int = 0) -> dict[str, Any]:
    """The decoder's outputs with factored masks; the embeddings, features and class logits are leaves."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, C, 6, 7, generator=generator).requires_grad_()
    outputs = [
        {
            "pred_logits": torch.randn(B, Q, CLASSES + 1, generator=generator).requires_grad_(),
            "pred_masks": MaskLogits(torch.randn(B, Q, C, generator=generator).requires_grad_(), features),
        }
        for _ in range(layers)
    ]
    return {**outputs[-1], "aux_outputs": outputs[:-1]}


def as_product(*maps: Tensor) -> list[MaskLogits]:
    """Maps (B, Q, H, W) of each output as products with common features, which are the maps themselves."""
    features = torch.cat(maps, 1)
    choice = torch.eye(features.shape[1], dtype=features.dtype).expand(len(features), -1, -1)
    return [MaskLogits(part, features) for part in choice.split([each.shape[1] for each in maps], 1)]


def dense(outputs: dict[str, Any]) -> dict[str, Any]:
    """The same outputs, with masks that are multiplied out."""
    layers = [*outputs["aux_outputs"], outputs]
    masks = as_product(*(layer["pred_masks"].dense() for layer in layers))
    made = [{"pred_logits": each["pred_logits"], "pred_masks": masks} for each, masks in zip(layers, masks)]
    return {**made[-1], "aux_outputs": made[:-1]}


def make_targets(*labels: list[int], size: tuple[int, int] = (24, 28), seed: int = 0) -> list[MaskTargets]:
    generator = torch.Generator().manual_seed(seed)
    return [
        MaskTargets(torch.tensor(ids, dtype=torch.long), torch.rand(len(ids), *size, generator=generator) < 0.4)
        for ids in labels
    ]


def seeded(
    criterion: SetCriterion, outputs: dict[str, Any], targets: list[MaskTargets], seed: int = 0
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return criterion(outputs, targets)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
