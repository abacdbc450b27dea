"""Adapters: by hand, in every family of timm that the docs name, and added to a model that was trained without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.modeling import build_model
from torch import nn

from tests.helpers.errors import refuses
from tests.helpers.models import equal, make_records, scores, tiny_cfg, train_step
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.errors import UserError
from tmt_d2.modeling.backbones.lora import LoRALinear, add_lora
from tmt_d2.modeling.backbones.timm_backbone import TimmBackbone

ADAPTERS = {  # of each block one for queries, keys and values together, or three, or (PVT) two
    "vit_small_patch14_dinov2": 12,
    "vit_small_patch16_dinov3": 12,
    "eva02_base_patch14_448": 36,
    "samvit_base_patch16": 12,
    "swin_tiny_patch4_window7_224": 12,
    "swinv2_tiny_window8_256": 12,
    "pvt_v2_b0": 16,
}


def lora_cfg(name: str = "vit_tiny_patch16_224", rank: int = 2, **changes: Any):
    timm_keys = {"NAME": name, "PYRAMID_CHANNELS": 32, "LORA_RANK": rank}
    keys = {f"MODEL__TIMM__{key}": value for key, value in timm_keys.items()}
    return tiny_cfg(MODEL__BACKBONE__NAME="timm", **keys, **changes)


def test_lora_by_hand() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 6)
    adapted = LoRALinear(linear, rank=2, alpha=4.0)
    x = torch.rand(3, 5)
    assert torch.equal(adapted(x), linear(x))  # B is 0
    with torch.no_grad():
        adapted.lora_b.normal_()
    expected = x @ linear.weight.T + linear.bias + 2.0 * x @ adapted.lora_a.T @ adapted.lora_b.T
    assert torch.allclose(adapted(x), expected, atol=1e-6)
    assert torch.allclose(x @ adapted.weight.T + adapted.bias, expected, atol=1e-6)  # so do SwinV2 and EVA
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == ["lora_a", "lora_b"]
    assert set(adapted.state_dict()) == {"weight", "bias", "lora_a", "lora_b"}  # the first two by their old names
    assert torch.equal(adapted.state_dict()["weight"], linear.weight)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_of_a_family_learns(name: str) -> None:
    with torch.device("meta"):
        net = TimmBackbone(name, lora_rank=2, frozen=True)  # refuses adapters without a gradient
    assert sum(isinstance(module, LoRALinear) for module in net.modules()) == ADAPTERS[name]
    assert all(("lora_" in key) == parameter.requires_grad for key, parameter in net.named_parameters())


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", "eva02_tiny_patch14_224"])
def test_adapters_do_what_merged_weights_do(name: str) -> None:
    torch.manual_seed(0)
    net = TimmBackbone(name, lora_rank=2).eval()
    plain = TimmBackbone(name).eval()
    for parameter in net.parameters():  # SwinV2 begins with norms of 0, adapters with B of 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    state = {key: value for key, value in net.state_dict().items() if ".lora_" not in key}
    plain.load_state_dict(state)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        adapted, without = (list(each(image).values())[-1] for each in (net, plain))
        modules = dict(plain.named_modules())
        for key, module in net.named_modules():
            if isinstance(module, LoRALinear):
                modules[key].weight += module.scale * module.lora_b @ module.lora_a
        merged = list(plain(image).values())[-1]
    assert not torch.allclose(adapted, without, atol=1e-2)
    assert torch.allclose(adapted, merged, atol=1e-3)


def test_families_without_projections_are_refused() -> None:
    with refuses("MODEL.TIMM.LORA_RANK"):
        TimmBackbone("convnextv2_atto", lora_rank=2)
    assert add_lora(nn.Linear(2, 2), 1) == 0


def test_adapters_that_nothing_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(self: Any, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.proj(x)

    monkeypatch.setattr(timm.models.vision_transformer.Attention, "forward", idle)
    with refuses("MODEL.TIMM.LORA_RANK"):
        TimmBackbone("vit_tiny_patch16_224", lora_rank=2)


def test_adapters_learn_while_what_they_adapt_is_frozen() -> None:
    model = build_model(lora_cfg(MODEL__TIMM__FROZEN=True))
    train_step(model, make_records())
    learning = {name for name, parameter in model.backbone.net.named_parameters() if parameter.grad is not None}
    assert len(learning) == 24 and all(".lora_" in name for name in learning)  # A and B of 12 blocks


def test_adapters_are_added_to_a_model_that_was_trained_without(tmp_path: Path) -> None:
    records, file = make_records(), str(tmp_path / "source.pth")
    source = build_model(lora_cfg(rank=0)).eval()
    torch.save({"model": source.state_dict()}, file)
    model = build_model(lora_cfg()).eval()
    TMTCheckpointer(model).load(file)
    assert equal(scores(model, records), scores(source, records))  # until they have learned
    state = model.state_dict()
    del state[next(name for name in state if name.endswith("lora_a"))]
    torch.save({"model": state}, file)
    with pytest.raises(UserError, match="lora_a"):  # some of them are missing
        TMTCheckpointer(model).load(file)
