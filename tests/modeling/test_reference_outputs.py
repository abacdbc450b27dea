"""The R50 model against what the official Mask2Former answers with the same weights (see tests/modeling/reference)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

import tmt_d2
from tests.helpers.checkout import BASE_CONFIG
from tests.helpers.reference_weights import fill_by_name
from tmt_d2.modeling.targets import semantic_targets

REFERENCE = Path(__file__).parent / "reference"
TOLERANCE = 2e-3
SEEDS = 4


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    with np.load(REFERENCE / "r50.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def official() -> Iterator[nn.Module]:
    model = build_model(tmt_d2.setup_cfg(str(BASE_CONFIG), ["MODEL.DEVICE", "cpu"])).eval()
    fill_by_name(model)
    yield model


@pytest.fixture(scope="module")
def answers(official: nn.Module, recorded: dict[str, Tensor]) -> dict[str, Any]:
    """One pass through the model, subsampled as the recording; "outputs" are the decoder's."""
    image = (recorded["image"].float() - official.pixel_mean) / official.pixel_std
    with torch.no_grad():
        features = official.backbone(image[None])
        mask_features, levels = official.sem_seg_head.pixel_decoder(features)
        outputs = official.sem_seg_head.predictor(levels, mask_features)
        (result,) = official([{"image": recorded["image"], "height": 128, "width": 192}])
    aux = [outputs["aux_outputs"][index]["pred_masks"].dense() for index in (0, 5)]
    return {
        "res5": features["res5"][:, ::8],
        "mask_features_s": mask_features[:, ::8, ::2, ::2],
        "multi_scale0": levels[0][:, ::8],
        "multi_scale2_s": levels[2][:, ::8, ::2, ::2],
        "pred_logits": outputs["pred_logits"],
        "pred_masks": outputs["pred_masks"].dense(),
        "aux0_logits": outputs["aux_outputs"][0]["pred_logits"],
        "aux0_masks_s": aux[0][..., ::4, ::4],
        "aux5_masks_s": aux[1][..., ::4, ::4],
        "sem_seg_s": result["sem_seg"][:, ::2, ::2],
        "outputs": outputs,
        "levels": levels,
        "mask_features": mask_features,
    }


def test_state_dict_is_the_official_one(official: nn.Module) -> None:
    expected = json.loads((REFERENCE / "r50_state_dict.json").read_text())
    state = official.state_dict()
    assert list(state) == list(expected)
    shapes = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()}
    assert shapes == expected


@pytest.mark.parametrize(
    "name",
    [
        "res5",
        "mask_features_s",
        "multi_scale0",
        "multi_scale2_s",
        "pred_logits",
        "pred_masks",
        "aux0_logits",
        "aux0_masks_s",
        "aux5_masks_s",
        "sem_seg_s",
    ],
)
def test_outputs_agree(name: str, answers: dict[str, Any], recorded: dict[str, Tensor]) -> None:
    assert answers[name].shape == recorded[name].shape
    assert (answers[name] - recorded[name]).abs().max() < TOLERANCE


def test_a_small_mistake_would_be_seen(
    official: nn.Module, answers: dict[str, Any], recorded: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two exchanged level embeddings, the kind of error that trains well and loads every checkpoint."""
    predictor = official.sem_seg_head.predictor
    swapped = nn.Parameter(predictor.level_embed.weight.detach()[[1, 0, 2]])
    monkeypatch.setattr(predictor.level_embed, "weight", swapped)
    with torch.no_grad():
        outputs = predictor(answers["levels"], answers["mask_features"])
    assert (outputs["pred_logits"] - recorded["pred_logits"]).abs().max() > 5 * TOLERANCE


def test_losses_agree(official: nn.Module, answers: dict[str, Any], recorded: dict[str, Tensor]) -> None:
    expected = json.loads((REFERENCE / "r50_losses.json").read_text())
    targets = [semantic_targets(recorded["label"])[0]._replace(valid=None)]
    runs = []
    with torch.no_grad():
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            runs.append({name: float(loss) for name, loss in official.criterion(answers["outputs"], targets).items()})
    assert set(runs[0]) == set(expected)
    for name, (mean, standard_error) in expected.items():
        found = float(np.mean([run[name] for run in runs]))
        assert abs(found - mean) <= 4 * standard_error + 0.005 * abs(mean), f"{name}: {found}, official {mean}"
