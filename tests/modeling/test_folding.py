"""Batch normalization in convolutions: the same features, from a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from torch import Tensor, nn

from tests.helpers.models import Build, Records, equal, random, scores, tiny_cfg
from tmt_d2.modeling.folding import BatchNorm, fold_batch_norm

BACKBONES: dict[str, dict[str, Any]] = {
    "R50": {},
    "R50 frozen": {"MODEL__RESNETS__NORM": "FrozenBN"},
    "R50 SyncBN": {"MODEL__RESNETS__NORM": "SyncBN"},
    "ResNet-18": {"MODEL__RESNETS__DEPTH": 18, "MODEL__RESNETS__RES2_OUT_CHANNELS": 64},
    "lite0": {"MODEL__BACKBONE__NAME": "timm", "MODEL__TIMM__NAME": "tf_efficientnet_lite0"},
    "timm's ResNet-18": {"MODEL__BACKBONE__NAME": "timm", "MODEL__TIMM__NAME": "resnet18"},
}


def with_statistics(module: nn.Module) -> nn.Module:
    """Give batch normalization random statistics and weights; fresh ones would change nothing."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, BatchNorm):
            for name, low in (("running_mean", -0.2), ("running_var", 0.5), ("weight", 0.5), ("bias", -0.2)):
                values = getattr(part, name).data
                values.copy_(torch.rand(values.shape, generator=generator) + low)
    return module


def folded_norms(module: nn.Module) -> list[bool]:
    """For each backbone, True if it has no batch normalization."""
    backbones = [part for part in module.modules() if isinstance(part, Backbone)]
    return [not any(isinstance(part, BatchNorm) for part in backbone.modules()) for backbone in backbones]


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_the_same_and_the_model_stays(name: str) -> None:
    torch.manual_seed(0)
    cfg = tiny_cfg(**BACKBONES[name])
    backbone = with_statistics(build_backbone(cfg, ShapeSpec(channels=3))).eval()
    image = random(2, 3, 75, 107)
    with torch.no_grad():
        before = backbone(image)
        folded = fold_batch_norm(backbone)
        found = folded(image)
        assert folded_norms(folded) == [True]
        assert equal(list(backbone(image).values()), list(before.values()))
    for key, expected in before.items():
        assert (found[key] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_model_in_training_is_folded_as_in_evaluation_and_stays_in_training(build_tiny: Build) -> None:
    model = with_statistics(build_tiny("MaskFormer")).eval()
    image = random(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.backbone(image)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        found = fold_batch_norm(model.train()).backbone(image)
    assert all(part.training for part in model.modules())
    assert equal(list(model.state_dict().values()), list(state.values()))
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_both_encoders_and_nothing_else_are_copied(build_tiny: Build, records: Records) -> None:
    model = with_statistics(build_tiny(MODEL__TMT__FEATURES="source"))
    folded = fold_batch_norm(model)
    assert folded_norms(folded) == [True, True]
    assert folded_norms(model) == [False, False]
    assert folded.sem_seg_head is model.sem_seg_head
    assert folded.transferability.discriminators is model.transferability.discriminators
    assert folded.pixel_mean is model.pixel_mean
    for found, expected in zip(scores(folded, records), scores(model, records)):
        assert (found.argmax(0) == expected.argmax(0)).float().mean() > 0.99


class BeforeConvolution(Backbone):
    """Batch normalization that is a convolution's neighbor, but comes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"res2": self.convolution(self.norm(x))}


def test_other_orders_are_left_alone() -> None:
    backbone = with_statistics(BeforeConvolution()).eval()
    assert fold_batch_norm(backbone) is backbone
    layers = nn.Sequential(nn.Linear(2, 2))
    assert fold_batch_norm(layers) is layers
