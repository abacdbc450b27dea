"""Matching queries to targets: costs by loops, and assignments by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tests.helpers.criterion import CLASSES, sigmoid
from tmt_d2.modeling.matcher import match, matching_costs


@pytest.mark.parametrize(("queries", "targets"), [(3, 3), (5, 2), (4, 1), (4, 0), (1, 1)])
def test_match_is_the_cheapest_assignment(queries: int, targets: int) -> None:
    cost = torch.randn(4, queries, targets, generator=torch.Generator().manual_seed(queries))
    (chosen,) = match([cost])
    assert chosen.shape == (4, targets)
    for output in range(4):
        cheapest = min(
            (sum(cost[output, q, t].item() for t, q in enumerate(order)), order)
            for order in itertools.permutations(range(queries), targets)
        )
        assert tuple(chosen[output]) == cheapest[1]


def test_match_keeps_images_apart() -> None:
    first, second = torch.randn(2, 4, 3), torch.randn(2, 4, 1)
    both = match([first, torch.zeros(2, 4, 0), second])
    np.testing.assert_array_equal(both[0], match([first])[0])
    np.testing.assert_array_equal(both[2], match([second])[0])
    assert both[1].shape == (2, 0)
    assert match([]) == []


def test_costs_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    L, Q, T, P = 2, 3, 2, 5
    classes = torch.randn(L, Q, CLASSES + 1, generator=generator)
    logits = torch.randn(L, Q, P, generator=generator)
    labels, masks = torch.tensor([2, 0]), torch.rand(T, P, generator=generator)
    found = matching_costs(classes, logits, labels, masks, class_weight=2.0, mask_weight=5.0, dice_weight=3.0)
    assert found.shape == (L, Q, T)
    for layer, q, t in itertools.product(range(L), range(Q), range(T)):
        probability = classes[layer, q].softmax(0)[labels[t]].item()
        bce = dice_top = dice_bottom = 0.0
        for x, wanted in zip(logits[layer, q].tolist(), masks[t].tolist()):
            p = sigmoid(x)
            bce -= (wanted * math.log(p) + (1 - wanted) * math.log(1 - p)) / P
            dice_top += 2 * p * wanted
            dice_bottom += p + wanted
        dice = 1 - (dice_top + 1) / (dice_bottom + 1)
        assert found[layer, q, t].item() == pytest.approx(-2 * probability + 5 * bce + 3 * dice, rel=1e-4)


def test_costs_of_points_that_count_in_part_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, point_weights = torch.randn(1, 2, 4, generator=generator), torch.tensor([1.0, 0.0, 0.5, 1.0])
    masks = torch.tensor([[1.0, 0.0, 0.25, 0.0], [0.0, 0.0, 0.25, 1.0]])
    classes, labels = torch.zeros(1, 2, CLASSES + 1), torch.tensor([0, 1])
    weights = {"class_weight": 0.0, "mask_weight": 5.0, "dice_weight": 3.0}
    found = matching_costs(classes, logits, labels, masks, **weights, point_weights=point_weights)
    for q, t in itertools.product(range(2), range(2)):
        bce = top = bottom = 0.0
        for x, wanted, weight in zip(logits[0, q].tolist(), masks[t].tolist(), point_weights.tolist()):
            bce -= (wanted * math.log(sigmoid(x)) + (weight - wanted) * math.log(1 - sigmoid(x))) / 2.5
            top, bottom = top + 2 * sigmoid(x) * wanted, bottom + sigmoid(x) * weight + wanted
        assert found[0, q, t].item() == pytest.approx(5 * bce + 3 * (1 - (top + 1) / (bottom + 1)), rel=1e-4)
    everything = matching_costs(classes, logits, labels, masks, **weights, point_weights=torch.ones(4))
    torch.testing.assert_close(everything, matching_costs(classes, logits, labels, masks, **weights))
    nothing = matching_costs(classes, logits, labels, 0 * masks, **weights, point_weights=torch.zeros(4))
    assert (nothing == 0).all()
