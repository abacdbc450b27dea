"""Eq. 12: which positions transferability leaves open."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tmt_d2.transferability import transferability_mask


def mask_by_counting(logits: Tensor, p_t: float, valid: Tensor) -> Tensor:
    """T = 1 - E falls as the logit rises; a position stays unless its T is above that of rank floor(p_t * n)."""
    kept = torch.zeros_like(valid)
    for image in range(len(logits)):
        values = sorted(logits[image][valid[image]].tolist())  # highest T first
        if not values:
            continue
        limit = values[int(Fraction(str(p_t)) * len(values))]
        for y in range(logits.shape[1]):
            for x in range(logits.shape[2]):
                kept[image, y, x] = bool(valid[image, y, x]) and logits[image, y, x].item() >= limit
    return kept


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, None]


def test_by_hand() -> None:
    logits = row(3.0, -1.0, 4.0, -2.0, 0.5, 9.0, -6.0, 5.0, 3.5, 8.0)
    # the highest T have the logits -6, -2, -1: those are what the source looks like
    expected = [True, False, True, False, True, True, False, True, True, True]
    assert transferability_mask(logits, 0.3)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("count", "p_t", "excluded"),
    [(7, 0.3, 2), (10, 0.3, 3), (100, 0.29, 29), (3, 0.3, 0), (4, 0.5, 2), (5, 0.99, 4), (1, 0.9, 0), (1000, 0.001, 1)],
)
def test_number_excluded(count: int, p_t: float, excluded: int) -> None:
    logits = torch.randperm(count, generator=torch.Generator().manual_seed(0)).float().view(1, 1, count)
    kept = transferability_mask(logits, p_t)
    assert (~kept).sum() == excluded
    assert (logits[~kept] < excluded).all()


@pytest.mark.parametrize("p_t", [0.0, 0.1, 0.3, 0.5, 0.77])
def test_equals_counting(p_t: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(-6, 7, (4, 5, 7), generator=generator).float()  # many ties
    valid = torch.rand(4, 5, 7, generator=generator) < 0.7
    valid[1], valid[2] = True, False
    assert torch.equal(transferability_mask(logits, p_t, valid), mask_by_counting(logits, p_t, valid))
    every = torch.ones_like(valid)
    assert torch.equal(transferability_mask(logits, p_t), mask_by_counting(logits, p_t, every))


def test_ties_with_the_threshold_stay() -> None:
    assert transferability_mask(row(0, 0, 0, 1, 2), 0.4).all()  # rank 2 ties with ranks 0 and 1
    assert transferability_mask(row(0, 1, 1, 1, 2), 0.4)[0, 0].tolist() == [False, True, True, True, True]


def test_all_tied_stay() -> None:
    assert transferability_mask(torch.full((2, 3, 4), -1.5), 0.9).all()


def test_saturated_logits_are_still_ranked() -> None:
    logits = torch.cat([200 + torch.arange(10.0), -200 - torch.arange(10.0)])[None, None]
    kept = transferability_mask(logits, 0.3)
    assert (~kept).nonzero()[:, 2].tolist() == [14, 15, 16, 17, 18, 19]  # -204 ... -209
    confident = transferability_mask(logits[..., :10], 0.3)
    assert confident[0, 0].tolist() == [False] * 3 + [True] * 7
    # ranking T itself cannot do this: all ten round to T = 0, and nothing would be excluded
    rounded = 1 - logits[..., :10].sigmoid()
    assert len(rounded.unique()) == 1
    assert transferability_mask(-rounded, 0.3).all()


def test_zero_keeps_every_valid_position() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[0, 3:] = False
    assert transferability_mask(logits, 0.0).all()
    assert torch.equal(transferability_mask(logits, 0.0, valid), valid)


def test_padding_has_no_rank_and_is_never_open() -> None:
    logits = row(1, 2, 3, 4, 5, -100, 100)
    valid = torch.tensor([[[True] * 5 + [False] * 2]])
    expected = [False, False, True, True, True, False, False]
    assert transferability_mask(logits, 0.4, valid)[0, 0].tolist() == expected
    assert transferability_mask(logits, 0.4)[0, 0].tolist() == [False, True, True, True, True, False, True]


def test_an_image_of_padding_has_nothing_open() -> None:
    valid = torch.zeros(1, 2, 3, dtype=torch.bool)
    assert not transferability_mask(torch.zeros(1, 2, 3), 0.3, valid).any()


def test_images_are_ranked_alone() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(4))
    shifted = logits + torch.tensor([0.0, 100.0])[:, None, None]
    assert torch.equal(transferability_mask(logits, 0.3), transferability_mask(shifted, 0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    logits = torch.arange(12.0).view(1, 3, 4).to(dtype)
    kept = transferability_mask(logits, 0.5)
    assert kept.dtype == torch.bool
    assert kept.flatten().tolist() == [False] * 6 + [True] * 6


@pytest.mark.parametrize("p_t", [-0.1, 1.0, 1.5, float("nan")])
def test_fraction_outside_its_range(p_t: float) -> None:
    with pytest.raises(ValueError):
        transferability_mask(torch.zeros(1, 2, 2), p_t)
