"""Eq. 13: the mask, its ways out, and the attention that obeys it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from tmt_d2.modeling.masked_attention import MultiheadAttention, masked_positions

IN, OUT = 3.0, -3.0  # mask logits inside and outside of a predicted mask


def maps(*rows: list[float]) -> Tensor:
    """(1, Q, 1, K): one row of mask logits for each query."""
    return torch.tensor(rows)[None, :, None]


def bools(text: str) -> Tensor:
    """ "x.x" -> (1, 1, K), x = True"""
    return torch.tensor([[[letter == "x" for letter in text]]])


def show(allowed: Tensor) -> list[str]:
    """(1, Q, K) -> one text a query."""
    return ["".join("x" if value else "." for value in query) for query in allowed[0].tolist()]


def mask_by_loops(
    logits: Tensor, transferable: Tensor | None, valid: Tensor | None, rule: str, threshold: float
) -> Tensor:
    B, Q, H, W = logits.shape
    result = torch.zeros(B, Q, H * W, dtype=torch.bool)
    for b, q in itertools.product(range(B), range(Q)):
        positions = [(y, x) for y in range(H) for x in range(W) if valid is None or valid[b, y, x]]
        predicted = []
        for y, x in positions:
            probability = torch.sigmoid(logits[b, q, y, x])
            if probability >= threshold if rule == "foreground" else probability <= threshold:
                predicted.append((y, x))
        both = [(y, x) for y, x in predicted if transferable is None or transferable[b, y, x]]
        for y, x in both or predicted or positions:
            result[b, q, y * W + x] = True
    return result


def test_conjunction_by_hand() -> None:
    logits = maps([IN, IN, OUT, OUT], [OUT, IN, IN, IN])
    assert show(masked_positions(logits).allowed) == ["xx..", ".xxx"]
    assert show(masked_positions(logits, bools("x.x.")).allowed) == ["x...", "..x."]
    assert show(masked_positions(logits, bools("x.x."), rule="uncertain").allowed) == ["..x.", "x..."]


def test_fallbacks_in_order() -> None:
    logits = maps([IN, IN, OUT, OUT, IN], [OUT, OUT, OUT, OUT, OUT], [OUT, OUT, IN, OUT, OUT])
    valid = bools("xxxx.")
    # nothing of the conjunction is left -> the predicted mask; that is empty too -> every valid position
    assert show(masked_positions(logits, bools("..xxx"), valid).allowed) == ["xx...", "xxxx.", "..x.."]
    assert show(masked_positions(logits, None, valid).allowed) == ["xx...", "xxxx.", "..x.."]
    # one position that both allow is enough to obey both
    assert show(masked_positions(logits, bools(".xxxx"), valid).allowed) == [".x...", "xxxx.", "..x.."]


def test_which_way_out_a_query_took() -> None:
    logits = maps([IN, IN, OUT, OUT, IN], [OUT, OUT, OUT, OUT, OUT], [OUT, OUT, IN, OUT, OUT])
    valid = bools("xxxx.")
    found = masked_positions(logits, bools("..xxx"), valid)
    assert show(found.predicted) == ["xx...", ".....", "..x.."]
    assert found.none_transferable.tolist() == [[True, False, False]]
    assert found.mask_empty.tolist() == [[False, True, False]]
    plain = masked_positions(logits, None, valid)  # control: without transferability nothing is taken away
    assert not plain.none_transferable.any() and torch.equal(plain.mask_empty, found.mask_empty)


def test_a_mask_on_padding_alone_is_empty() -> None:
    logits = maps([OUT, OUT, IN])
    assert show(masked_positions(logits, None, bools("xx.")).allowed) == ["xx."]
    assert show(masked_positions(logits, bools("..x"), bools("xx.")).allowed) == ["xx."]
    assert show(masked_positions(logits).allowed) == ["..x"]  # control: without padding that is where it looks


def test_the_threshold_itself_belongs_to_both_rules() -> None:
    logits = maps([0.0, 1.0, -1.0])
    assert show(masked_positions(logits).allowed) == ["xx."]
    assert show(masked_positions(logits, rule="uncertain").allowed) == ["x.x"]
    assert show(masked_positions(logits, threshold=0.7).allowed) == [".x."]
    assert show(masked_positions(logits, threshold=0.7, rule="uncertain").allowed) == ["x.x"]


@pytest.mark.parametrize("rule", ["foreground", "uncertain"])
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_equals_loops(rule: str, threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 12, 2, 3, generator=generator) * 3
    logits[:, 0], logits[:, 1] = 5.0, -5.0
    transferable = torch.rand(3, 2, 3, generator=generator) < 0.4
    valid = torch.rand(3, 2, 3, generator=generator) < 0.7
    valid[0] = True
    assert valid.flatten(1).any(1).all()
    for t, v in itertools.product((None, transferable), (None, valid)):
        found = masked_positions(logits, t, v, rule, threshold).allowed
        assert found.dtype == torch.bool
        assert torch.equal(found, mask_by_loops(logits, t, v, rule, threshold))
        assert found.any(-1).all()  # no query is left with nothing
        if v is not None:
            assert not (found & ~v.flatten(1)[:, None]).any()


def test_open_everywhere_is_mask2former() -> None:
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    every = torch.ones(2, 3, 4, dtype=torch.bool)
    assert torch.equal(masked_positions(logits, every, every).allowed, masked_positions(logits).allowed)


def test_mask_takes_every_unknown_rule_as_an_error() -> None:
    with pytest.raises(ValueError):
        masked_positions(torch.zeros(1, 1, 1, 1), rule="background").allowed


@pytest.fixture
def pair() -> tuple[MultiheadAttention, nn.MultiheadAttention]:
    """Ours and PyTorch's with the same weights: the names are the same too."""
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_attention_equals_pytorch(pair: tuple[MultiheadAttention, nn.MultiheadAttention]) -> None:
    ours, theirs = pair
    query, key, value = torch.randn(2, 4, 12, requires_grad=True), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    allowed = torch.rand(2, 4, 7) < 0.4
    allowed[..., 0] = True
    expected, weights = theirs(
        query, key, value, attn_mask=~allowed.repeat_interleave(3, 0), average_attn_weights=False
    )
    found = ours(query, key, value, allowed)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.weights(query, key, allowed), weights)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), query)[0], torch.autograd.grad(expected.square().sum(), query)[0]
    )
    unmasked = theirs(query, key, value, need_weights=False)[0]
    torch.testing.assert_close(ours(query, key, value), unmasked)
    assert not torch.allclose(found, unmasked)


def test_blocked_keys_have_no_weight_and_no_influence(pair: tuple[MultiheadAttention, nn.MultiheadAttention]) -> None:
    ours, _ = pair
    query, key, value = torch.randn(1, 2, 12), torch.randn(1, 5, 12), torch.randn(1, 5, 12)
    allowed = torch.tensor([[[True, True, False, False, True], [False, False, False, True, False]]])
    weights = ours.weights(query, key, allowed)
    assert (weights.masked_select(~allowed[:, None].expand_as(weights)) == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 3, 2))
    before = ours(query, key, value, allowed)
    key[:, 2], value[:, 2] = 100.0, 100.0
    assert torch.equal(ours(query, key, value, allowed), before)
    key[:, 0], value[:, 0] = 100.0, 100.0
    assert not torch.allclose(ours(query, key, value, allowed)[:, 0], before[:, 0])
