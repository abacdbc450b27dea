"""The pixel decoder computes in float32, whatever the precision of the step around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tmt_d2.training.step import TrainingStep


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["MaskFormer", "TransferableMaskFormer"])
def test_the_pixel_decoder_is_in_float32_within_a_half_precision_step(
    architecture: str, dtype: torch.dtype, build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]
) -> None:
    model = build_tiny(architecture).train()
    decoder = model.sem_seg_head.pixel_decoder
    seen: list[tuple[dict[str, Tensor], Any]] = []
    decoder.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=1e-3), amp_dtype=dtype)
    assert step.scaler.is_enabled() == (dtype == torch.float16)
    if step.scaler.is_enabled():  # the first scale, 2**16, overflows, and the steps after it lower it
        step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    losses, norm = step.backward(records)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(norm) and norm > 0
    before = {name: value.clone() for name, value in model.named_parameters()}
    step.update()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"backbone.stem.conv1.weight", "sem_seg_head.pixel_decoder.mask_features.weight"} <= moved

    features, (mask_features, levels) = seen[0]
    assert features["res5"].dtype == dtype  # control: the backbone was in half precision
    model = build_tiny(architecture).train()  # the weights before the step
    decoder = model.sem_seg_head.pixel_decoder
    expected = decoder({name: feature.float() for name, feature in features.items()})
    for found, wanted in zip((mask_features, *levels), (expected.mask_features, *expected.levels)):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)
    with torch.autocast("cpu", dtype):  # control: autocast would change the decoder's parts
        rounded = decoder.mask_features(decoder.layer_1(decoder.adapter_1(features["res2"])))
    assert rounded.dtype == dtype
