"""Masks by class from a label, by hand and by brute force."""

from __future__ import annotations

import pytest
import torch

from tmt_d2.modeling.targets import semantic_targets


def test_one_mask_per_class_by_hand() -> None:
    sem_seg = torch.tensor([[0, 0, 5], [255, 5, 18]], dtype=torch.uint8)
    (target,) = semantic_targets(sem_seg)
    assert target.labels.tolist() == [0, 5, 18]
    assert target.labels.dtype == torch.long
    assert target.masks.dtype == torch.bool
    assert target.valid is not None and target.valid.int().tolist() == [[1, 1, 1], [0, 1, 1]]
    assert target.masks.int().tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 0]], [[0, 0, 0], [0, 0, 1]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_batch_equals_single_images(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 19, (3, 5, 7), generator=generator).to(dtype)
    batch[1] = 255
    batch[2, 0] = 255
    together = semantic_targets(batch)
    for image, target in zip(batch, together):
        (alone,) = semantic_targets(image)
        assert torch.equal(alone.labels, target.labels)
        assert torch.equal(alone.masks, target.masks)
        brute = [c for c in range(19) if (image == c).any()]
        assert target.labels.tolist() == brute
        for label, mask in zip(brute, target.masks):
            assert torch.equal(mask, image == label)


def test_all_ignored_gives_no_mask_of_the_right_shape() -> None:
    (target,) = semantic_targets(torch.full((4, 6), 255, dtype=torch.uint8))
    assert target.labels.shape == (0,)
    assert target.masks.shape == (0, 4, 6)


def test_another_ignore_value() -> None:
    (target,) = semantic_targets(torch.tensor([[0, 1], [2, 2]]), ignore=2)
    assert target.labels.tolist() == [0, 1]


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError):
        semantic_targets(torch.zeros(1, 2, 3, 4))
