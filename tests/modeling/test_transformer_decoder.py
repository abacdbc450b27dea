"""The transformer decoder: what its queries may look at, and what it records of that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import tiny_cfg
from tmt_d2.modeling import MultiScaleMaskedTransformerDecoder
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.modeling.masked_attention import masked_positions
from tmt_d2.modeling.ops.resize import resize
from tmt_d2.modeling.transformer_decoder import KeyMask, LayerTrace

SIZES = [(2, 3), (4, 6), (8, 12)]
B, Q, C, HEADS, LAYERS = 2, 6, 32, 4, 5


def make_decoder(**changes: Any) -> MultiScaleMaskedTransformerDecoder:
    torch.manual_seed(0)
    arguments = {
        "num_classes": 3,
        "hidden_dim": C,
        "num_queries": Q,
        "nheads": HEADS,
        "dim_feedforward": 16,
        "dec_layers": LAYERS,
        "mask_dim": C,
        "enforce_input_project": False,
        "mask_rule": "foreground",
        "lambda_m": 0.5,
    }
    return MultiScaleMaskedTransformerDecoder(C, **{**arguments, **changes}).eval()


def make_inputs(channels: int = C) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(B, channels, *size, generator=generator) for size in SIZES]
    return levels, torch.randn(B, C, 16, 24, generator=generator)


def make_valid() -> list[Tensor]:
    """The first image ends after half of the rows, the second one after two thirds of the columns."""
    masks = [torch.ones(B, *size, dtype=torch.bool) for size in SIZES]
    for mask, (height, width) in zip(masks, SIZES):
        mask[0, height // 2 :] = False
        mask[1, :, width * 2 // 3 :] = False
    return masks


def make_transferable() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(B, *size, generator=generator) < 0.7 for size in SIZES]


def flat(outputs: dict[str, Any]) -> list[Tensor]:
    return [
        tensor
        for output in (*outputs["aux_outputs"], outputs)
        for tensor in (output["pred_logits"], output["pred_masks"].dense())
    ]


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(left), flat(right), strict=True))


def test_levels_of_another_width_are_projected() -> None:
    decoder = make_decoder()
    assert not any(name.startswith("input_proj") for name in decoder.state_dict())
    torch.manual_seed(0)
    wide = MultiScaleMaskedTransformerDecoder.from_config(tiny_cfg(MODEL__MASK_FORMER__HIDDEN_DIM=32), 64)
    wide_decoder = MultiScaleMaskedTransformerDecoder(**{**wide, "mask_dim": C, "num_queries": Q})
    assert wide_decoder.input_proj[2].weight.shape == (32, 64, 1, 1)
    assert wide_decoder(*make_inputs(64))["pred_logits"].shape == (B, Q, 20)


@pytest.mark.parametrize("rule", ["foreground", "uncertain"])
def test_trace_is_what_happened(rule: str) -> None:
    decoder, (levels, mask_features) = make_decoder(mask_rule=rule), make_inputs()
    transferable, valid = make_transferable(), make_valid()
    inputs: list[tuple[Tensor, ...]] = []
    for layer in decoder.transformer_cross_attention_layers:
        layer.multihead_attn.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments))
    trace: list[LayerTrace] = []
    outputs = decoder(levels, mask_features, KeyMask(valid, transferable), trace)
    assert [layer.level for layer in trace] == [0, 1, 2, 0, 1]
    for index, seen in enumerate(trace):
        height, width = SIZES[seen.level]
        logits = outputs["aux_outputs"][index]["pred_masks"].resized(resize(mask_features, (height, width)))
        expected = masked_positions(logits, transferable[seen.level], valid[seen.level], rule).allowed
        assert torch.equal(seen.positions.allowed.flatten(2), expected)
        M = logits.sigmoid()
        by_rule = (M >= 0.5 if rule == "foreground" else M <= 0.5) & valid[seen.level][:, None]
        assert torch.equal(seen.positions.predicted, by_rule)
        conjunction = by_rule & transferable[seen.level][:, None]
        assert torch.equal(seen.positions.mask_empty, ~by_rule.flatten(2).any(-1))
        assert torch.equal(
            seen.positions.none_transferable, by_rule.flatten(2).any(-1) & ~conjunction.flatten(2).any(-1)
        )
        assert seen.attention.shape == (B, HEADS, Q, height, width)

        query, key, _, allowed = inputs[index]
        assert torch.equal(allowed, expected)
        attention = decoder.transformer_cross_attention_layers[index].multihead_attn
        weights = softmax_by_hand(attention, query, key, allowed)
        torch.testing.assert_close(seen.attention.flatten(3), weights, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.attention.sum((3, 4)), torch.ones(B, HEADS, Q))
        blocked = ~seen.positions.allowed[:, None].expand_as(seen.attention)
        assert blocked.any()
        assert (seen.attention[blocked] == 0).all()
    assert same(outputs, decoder(levels, mask_features, KeyMask(valid, transferable)))  # looking changes nothing


def softmax_by_hand(attention: nn.Module, query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """(B, M, Q, K): head by head, exponentials over the allowed keys only."""
    size = C // HEADS
    result = torch.zeros(B, HEADS, query.shape[1], key.shape[1])
    for head in range(HEADS):
        rows = slice(head * size, (head + 1) * size)
        q = query @ attention.in_proj_weight[rows].T + attention.in_proj_bias[rows]
        rows = slice(C + head * size, C + (head + 1) * size)
        k = key @ attention.in_proj_weight[rows].T + attention.in_proj_bias[rows]
        exponentials = torch.exp(torch.einsum("bqc,bkc->bqk", q, k) / size**0.5) * allowed
        result[:, head] = exponentials / exponentials.sum(-1, keepdim=True)
    return result.detach()


def test_padding_has_no_influence() -> None:
    """What the levels hold at padded positions changes no output."""
    decoder, (levels, mask_features) = make_decoder(), make_inputs()
    valid = make_valid()
    filled = [level.masked_fill(~mask[:, None], 1e3) for level, mask in zip(levels, valid)]
    for transferable in (None, make_transferable()):
        before = decoder(levels, mask_features, KeyMask(valid, transferable))
        assert same(before, decoder(filled, mask_features, KeyMask(valid, transferable)))
    assert not same(decoder(levels, mask_features), decoder(filled, mask_features))  # control: without the mask it does


def test_masks_steer_attention_without_a_gradient() -> None:
    decoder, (levels, mask_features) = make_decoder(), make_inputs()
    levels = [level.requires_grad_() for level in levels]
    mask_features.requires_grad_()
    outputs = decoder(levels, mask_features)
    outputs["pred_logits"].sum().backward()
    assert all(level.grad is not None for level in levels)
    assert mask_features.grad is None  # class scores depend on masks through the attention masks alone


def test_batch_of_two_is_two_batches_of_one() -> None:
    decoder, (levels, mask_features) = make_decoder(), make_inputs()
    transferable, valid = make_transferable(), make_valid()
    both = flat(decoder(levels, mask_features, KeyMask(valid, transferable)))
    for i in range(B):
        one = slice(i, i + 1)
        alone = decoder(
            [level[one] for level in levels],
            mask_features[one],
            KeyMask([mask[one] for mask in valid], [mask[one] for mask in transferable]),
        )
        for left, right in zip(flat(alone), both):
            torch.testing.assert_close(left[0], right[i], atol=1e-5, rtol=1e-4)


def test_factored_masks_equal_resized_dense_masks() -> None:
    """Resizing is linear, so that features may be resized instead of every query's mask."""
    masks = MaskLogits(torch.randn(B, Q, C), torch.randn(B, C, 16, 24))
    dense = nn.functional.interpolate(masks.dense(), size=(4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(masks.resized(resize(masks.features, (4, 6))), dense, atol=1e-4, rtol=1e-4)
