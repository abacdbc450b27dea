"""Views of an unlabeled image: other colors, blur, blocks that are hidden."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.helpers.models import random
from tmt_d2.adaptation.self_training.augmentation import BlockMasking, StrongAugmentation
from tmt_d2.utils.randomness import seeded


def test_strong_views() -> None:
    image = (random(3, 9, 13).sigmoid() * 255).to(torch.uint8)
    with seeded(1):
        assert torch.equal(StrongAugmentation(0, 0.2, 0)(image).round(), image.float())  # control: nothing
    with seeded(1):
        jittered = StrongAugmentation(1, 0.2, 0)(image)
    with seeded(1):
        swapped = StrongAugmentation(1, 0.2, 0, bgr=True)(image.flip(0)).flip(0)
    torch.testing.assert_close(jittered, swapped)
    assert (jittered - image).abs().mean() > 2 and jittered.min() >= 0 and jittered.max() <= 255
    with seeded(3):
        blurred = StrongAugmentation(0, 0.2, 1)(image)
    assert blurred.std() < 0.95 * image.float().std()
    changed = []
    for seed in range(300):
        with seeded(seed):
            changed.append(not torch.equal(StrongAugmentation(0.8, 0.2, 0)(image).round(), image.float()))
    assert 0.72 < sum(changed) / 300 < 0.88


def test_masked_view_hides_whole_blocks() -> None:
    image, fill = (random(3, 40, 70).sigmoid() * 255).to(torch.uint8), torch.full((3, 1, 1), -1.0)
    shares = []
    for seed in range(30):
        with seeded(seed):
            view = BlockMasking(0.7, 0.25, fill)(image)
        hidden = (view == -1).all(0)
        assert torch.equal(view[:, ~hidden], image[:, ~hidden].float())
        for row, column in itertools.product(range(0, 40, 10), range(0, 70, 10)):  # a quarter of the shorter side
            assert len(hidden[row : row + 10, column : column + 10].unique()) == 1
        shares.append(hidden.float().mean().item())
    assert sum(shares) / 30 == pytest.approx(0.7, abs=0.05) and len(set(shares)) > 5
