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


def dense(outputs: dict[str, Any]) -> dict[str, Any]:
    made = {"pred_logits": outputs["pred_logits"], "pred_masks": outputs["pred_masks"].dense()}
    if "aux_outputs" in outputs:
        made["aux_outputs"] = [dense(output) for output in outputs["aux_outputs"]]
    return made


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
