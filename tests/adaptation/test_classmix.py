"""ClassMix: what is pasted onto an unlabeled image, and from which one."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from tmt_d2.adaptation.self_training.classmix import classmix_mask, donor_of, paste
from tmt_d2.utils.randomness import seeded


def test_half_of_the_classes_are_classmix_mask() -> None:
    label = torch.tensor([[3, 3, 5], [7, 255, 9], [11, 11, 11]])
    counts = []
    for seed in range(20):
        with seeded(seed):
            mask = classmix_mask(label, torch.Size((3, 3)))
        chosen = set(label[mask].tolist())
        assert torch.equal(mask, torch.isin(label, torch.tensor(sorted(chosen))))  # whole classes
        assert 255 not in chosen
        counts.append(len(chosen))
    assert set(counts) == {3}  # of five
    with seeded(0):
        assert not classmix_mask(torch.full((2, 2), 255), torch.Size((2, 2))).any()


def test_pixels_and_labels_are_pasted_together_where_both_images_are() -> None:
    below, above = torch.zeros(1, 2, 4), torch.ones(1, 3, 2)
    with seeded(0):
        mask = classmix_mask(torch.full((3, 2), 4), torch.Size((2, 4)))
    assert mask.tolist() == [[True, True, False, False]] * 2
    assert paste(below, above, mask)[0].tolist() == [[1, 1, 0, 0]] * 2
    assert not below.any()


def test_donors_lie_in_the_same_block() -> None:
    """Blocks of two labeled and one unlabeled, or of one and two: each is served from its own block, and all are."""
    for per_block, images in ((2, 1), (1, 2), (3, 2), (1, 1)):
        blocks = 4
        donors: Any = [(block, i) for block in range(blocks) for i in range(per_block)]
        seen = set()
        for place, seed in itertools.product(range(blocks * images), range(30)):
            whole = donor_of(place, blocks * images, donors, seed)
            block = place // images
            assert whole[0] == block
            alone = donor_of(place - block * images, images, donors[block * per_block :][:per_block], seed)
            assert alone == whole  # whatever the batch is split into
            seen.add(whole)
        assert len(seen) == len(donors)
