"""The distance to frozen features, by hand."""

from __future__ import annotations

import pytest
import torch

from tmt_d2.adaptation.self_training.feature_distance import class_positions, feature_distance


def test_feature_distance_by_hand() -> None:
    labels = torch.full((2, 4, 8), 255)
    labels[0, :, :4] = 13  # the left cell is a car, of the right one a quarter less
    labels[0, 1:, 4:] = 11
    labels[0, 0, 4:] = 13
    where = class_positions(labels, [11, 13], (1, 2))
    assert where.tolist() == [[[True, True]], [[False, False]]]
    assert class_positions(labels, [13], (1, 2)).tolist() == [[[True, False]], [[False, False]]]
    features = torch.zeros(2, 2, 1, 2)
    features[0, :, 0, 0], features[0, :, 0, 1], features[1] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), 9.0
    features.requires_grad_()
    distance = feature_distance(features, torch.zeros(2, 2, 1, 2), where)
    assert distance.item() == pytest.approx((5 + 2) / 2 / 2)  # over positions, then over both images
    distance.backward()
    assert features.grad is not None and not features.grad[1].any() and torch.isfinite(features.grad).all()
