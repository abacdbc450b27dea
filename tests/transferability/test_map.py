"""Eq. 11: T = 1 - E of every position, without padding."""

from __future__ import annotations

import torch

from tmt_d2.transferability import TransferabilityMap, transferability_mask

# E of 1/2, 3/4, 1/5, ...; the second image has padding at the bottom and right
LOGITS = torch.tensor([[1.0, 3.0, 1 / 4], [9.0, 1 / 9, 1.0]]).log().repeat(2, 1, 1)
VALID = torch.ones(2, 2, 3, dtype=torch.bool)
VALID[1, 1] = VALID[1, :, 2] = False


def test_map_by_hand() -> None:
    level = TransferabilityMap(LOGITS, VALID)
    torch.testing.assert_close(level.map_of(0), torch.tensor([[0.5, 0.25, 0.8], [0.1, 0.9, 0.5]]))
    torch.testing.assert_close(level.map_of(1), torch.tensor([[0.5, 0.25]]))
    torch.testing.assert_close(level.map_of(0, (2, 1)), torch.tensor([[0.5], [0.1]]))
    assert torch.equal(level.logits_of(1), LOGITS[1, :1, :2])


def test_what_is_most_like_the_source_is_excluded() -> None:
    level = TransferabilityMap(LOGITS, VALID)
    kept = level.transferable(0.34)  # two of six, none of two
    assert (~kept[0]).nonzero().tolist() == [[0, 2], [1, 1]]  # T = 0.8 and 0.9
    assert torch.equal(kept[1], VALID[1])
    assert torch.equal(kept, transferability_mask(LOGITS, 0.34, VALID))
