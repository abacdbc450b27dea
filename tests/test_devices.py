"""Every tensor of a pass, of the estimator and of the losses is made on the model's device: tried on a GPU that is not
there (PyTorch's fake tensors have shape, dtype and device, and refuse to be mixed between devices).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from tests.helpers.models import Build
from tests.helpers.small_runs import small_cfg
from tmt_d2.data import register_data
from tmt_d2.data.loaders import build_train_loader
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.methods.estimator import DiscriminatorTraining
from tmt_d2.methods.table import method_of
from tmt_d2.modeling import criterion, pixel_decoder, tmt, transformer_decoder
from tmt_d2.modeling.mask_former import Pass
from tmt_d2.modeling.precision import mixed_precision
from tmt_d2.training.trainer import StageTrainer

pytestmark = pytest.mark.slow

SIZES = ((37, 91), (64, 50))  # padded to 64 x 96
TARGETS = (3, 0)  # of each image


@pytest.fixture
def model(build_tiny: Build, monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """TMT on a pretended GPU; what needs numbers, the matcher's answer, is put in."""

    def answer(costs: Sequence[Tensor]) -> list[np.ndarray]:
        assert [cost.device.type for cost in costs] == ["cuda", "cuda"]
        return [np.tile(np.arange(cost.shape[2]), (cost.shape[0], 1)) for cost in costs]

    def pad(tensors: Sequence[Tensor], size_divisibility: int) -> ImageList:
        padded = [F.pad(each, (0, 96 - each.shape[2], 0, 64 - each.shape[1])) for each in tensors]
        return ImageList(torch.stack(padded), SIZES)

    monkeypatch.setattr(criterion, "match", answer)
    monkeypatch.setattr(ImageList, "from_tensors", staticmethod(pad))  # Detectron2's calculates sizes with tensors
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # else no autocast
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    built = build_tiny("TransferableMaskFormer", MODEL__TMT__OUTPUT_TRANSFERABILITY=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield built.to("cuda")


def records() -> list[dict[str, Any]]:
    """As the loader gives them: on the CPU."""
    return [{"image": torch.zeros(3, *size, dtype=torch.uint8), "height": 70, "width": 90} for size in SIZES]


def targets() -> list[dict[str, Tensor]]:
    return [
        {
            "labels": torch.zeros(count, dtype=torch.long, device="cuda"),
            "masks": torch.zeros(count, 64, 96, dtype=torch.bool, device="cuda"),
        }
        for count in TARGETS
    ]


def run(model: Any, dtype: torch.dtype | None) -> tuple[Pass, list[dict[str, Any]], dict[str, Tensor]]:
    with mixed_precision("cuda", dtype):
        images = model.preprocess(records())
        passed = model.run(images)
        return passed, model.postprocess(passed, records(), images), model.criterion(passed.outputs, targets())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_everything_is_made_on_the_device_of_the_model(model: Any, dtype: torch.dtype | None, training: bool) -> None:
    passed, results, losses = run(model.train(training), dtype)
    made = [*losses.values(), *passed.inputs.levels, *(level.logits for level in passed.transferability)]
    made += [result["sem_seg"] for result in results] + [level for each in results for level in each["transferability"]]
    assert {tensor.device.type for tensor in made} == {"cuda"}
    made.append(passed.inputs.mask_features)
    assert {tensor.dtype for tensor in made} == {torch.float32}  # of the pixel decoder, too
    assert passed.outputs["pred_logits"].dtype == (dtype or torch.float32)  # control: autocast was there
    assert results[0]["sem_seg"].shape == (19, 70, 90)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (pixel_decoder, "_pixel_centers"),
        (transformer_decoder, "sine_position_encoding"),
        (tmt, "valid_positions"),
        (criterion, "_at"),
    ],
)
def test_a_tensor_made_on_the_cpu_is_noticed(
    module: Any, function: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what one function of four parts makes."""
    make = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *args, **kwargs: tree_map(Tensor.cpu, make(*args, **kwargs)))
    with pytest.raises(RuntimeError, match="device"):
        run(model, None)


@pytest.mark.parametrize("stage", ["estimator", "self-training"])
def test_a_module_around_the_model_trains_where_the_model_is(
    stage: str, start: Path, data_root: None, tmp_path: Path
) -> None:
    """Its buffers, too: counts and running means meet the model's tensors, and NCCL knows no others."""
    options = {"SELF_TRAINING__MASKED_WEIGHT": 1.0, "SELF_TRAINING__IGNORE_UNCONFIDENT": True}
    cfg = small_cfg(stage, tmp_path, start, **{f"TRANSFER__{key}": value for key, value in options.items()})
    register_data(cfg)
    model = build_model(cfg).to("meta")
    method = method_of(cfg).training
    training = DiscriminatorTraining(model, 0.3) if stage == "estimator" else method(cfg, model) if method else None
    loader = build_train_loader(cfg.DATASETS.TRAIN, SemanticMapper(cfg, is_train=True), 4)
    trainer = StageTrainer(cfg, model=model, training_module=training, data_loader=loader, evaluate=dict)
    held = dict([*trainer.module.named_buffers(), *trainer.module.named_parameters()])
    assert any(name.startswith("progress.") for name in held)
    assert {name: tensor.device.type for name, tensor in held.items() if tensor.device.type != "meta"} == {}
