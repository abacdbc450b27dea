"""The pixel decoder under autocast on a CPU: it obeys, but what is sampled and where stays in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tmt_d2.adaptation import Task
from tmt_d2.engine.step import TrainingStep
from tmt_d2.modeling.ops import deformable_attention


@pytest.mark.parametrize("architecture", ["MaskFormer", "TransferableMaskFormer"])
def test_points_and_levels_of_a_bfloat16_step_are_in_float32(
    architecture: str,
    build_tiny: Callable[..., nn.Module],
    records: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled: list[tuple[Tensor, ...]] = []
    attend = deformable_attention.ms_deform_attn

    def watch(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
        sampled.append((value, locations, weights))
        return attend(value, shapes, locations, weights)

    monkeypatch.setattr(deformable_attention, "ms_deform_attn", watch)
    model = build_tiny(architecture).train()
    decoder = model.sem_seg_head.pixel_decoder
    seen: list[tuple[dict[str, Tensor], Any]] = []
    decoder.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    step = TrainingStep(Task(model), torch.optim.SGD(model.parameters(), lr=1e-3), amp_dtype=torch.bfloat16)
    losses, norm = step.backward(records)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(norm) and norm > 0
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    before = {name: value.clone() for name, value in model.named_parameters()}
    step.update()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"backbone.stem.conv1.weight", "sem_seg_head.pixel_decoder.mask_features.weight"} <= moved

    features, (mask_features, levels) = seen[0]
    assert features["res5"].dtype == mask_features.dtype == torch.bfloat16  # control: autocast reached the decoder
    assert {level.dtype for level in levels} == {torch.float32}
    value, locations, weights = sampled[0]
    assert (value.dtype, locations.dtype, weights.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert not torch.equal(locations, locations.bfloat16().float())  # nor have they been rounded on the way


@torch.no_grad()
def test_levels_alone_are_those_of_the_whole_pass(build_tiny: Callable[..., nn.Module]) -> None:
    model = build_tiny("MaskFormer")
    decoder = model.sem_seg_head.pixel_decoder
    features = model.backbone(torch.randn(2, 3, 64, 96))
    whole = decoder(features).levels
    features.pop("res2")  # the map at 1/4 is not needed
    alone = decoder.levels(features)
    assert all(torch.equal(left, right) for left, right in zip(alone, whole, strict=True))
