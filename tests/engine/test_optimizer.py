"""Parameter groups: what is decayed, by hand."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers.batch_norm import LayerNorm, NaiveSyncBatchNorm
from timm.layers import LayerNorm2d, LayerScale, RmsNorm
from timm.layers.grn import GlobalResponseNorm
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from tmt_d2.engine.optimizer import parameter_groups

WEIGHTS, NORMS, EMBEDDINGS = 0.5, 0.25, 0.125


def decays(model: nn.Module) -> dict[str, float]:
    groups = parameter_groups(
        model,
        base_lr=1.0,
        weight_decay=WEIGHTS,
        weight_decay_norm=NORMS,
        weight_decay_embed=EMBEDDINGS,
        backbone_multiplier=1.0,
    )
    of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    return {name: of[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "kind",
    [
        nn.BatchNorm2d, nn.BatchNorm1d, NaiveSyncBatchNorm, LayerNorm, nn.LayerNorm, LayerNorm2d, nn.RMSNorm, RmsNorm,
        GlobalResponseNorm, LayerScale,
    ],
)  # fmt: skip
def test_norms_have_their_own_decay(kind: type[nn.Module]) -> None:
    assert set(decays(nn.Sequential(kind(4))).values()) == {NORMS}


def test_other_layers_have_theirs() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(2, 2), "embedding": nn.Embedding(2, 2)})
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(2)))
    assert decays(model) == {
        "pos_embed": 0.0,
        "linear.weight": WEIGHTS,
        "linear.bias": WEIGHTS,
        "embedding.weight": EMBEDDINGS,
    }


def test_layer_scale_that_is_a_parameter_of_its_block() -> None:
    found = decays(ConvNeXtBlock(4))
    assert (found["gamma"], found["mlp.fc1.weight"], found["norm.weight"]) == (NORMS, WEIGHTS, NORMS)
