"""Every tensor is made on the model's device. Of a pass: PyTorch's fake tensors on "cuda" have shape, dtype and device,
and refuse to be mixed between devices. Of every task: the tensors of a pretended device have values as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from tests.helpers.checkout import run_python
from tests.helpers.device_driver import Tasks
from tests.helpers.models import Build
from tests.helpers.pretended_device import DeviceError
from tests.helpers.small_runs import make_scenes, save_start
from tmt_d2.modeling import criterion, pixel_decoder, tmt, transformer_decoder
from tmt_d2.modeling.mask_former import Pass
from tmt_d2.modeling.precision import mixed_precision
from tmt_d2.modeling.targets import MaskTargets

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


def targets() -> list[MaskTargets]:
    return [
        MaskTargets(
            torch.zeros(count, dtype=torch.long, device="cuda"),
            torch.zeros(count, 64, 96, dtype=torch.bool, device="cuda"),
        )
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
        (criterion, "point_sample"),
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


TASKS = Tasks(Path(), Path())


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How each task ended on the pretended device."""
    folder = tmp_path_factory.mktemp("devices")
    start, scenes = save_start(folder / "start.pth"), make_scenes(folder / "scenes")
    driver = ("-m", "tests.helpers.device_driver", str(folder), str(start))
    ran = run_python(*driver, DETECTRON2_DATASETS=str(scenes), timeout=600)
    assert (folder / "tasks.json").is_file(), ran.stderr[-3000:]
    return json.loads((folder / "tasks.json").read_text())


@pytest.mark.parametrize("task", TASKS.all())
def test_a_task_runs_where_its_model_is(task: str, ends: dict[str, dict[str, Any]]) -> None:
    """Nothing of it is left in memory: the modules around the model, what a step makes, what collectives are given."""
    assert not ends[task]["error"], ends[task]["result"]
    if " in " in task:  # control: autocast was there
        assert task.split(" in ")[1] in ends[task]["result"]
    if task == "collectives":
        assert min(ends[task]["result"].values()) > 0


@pytest.mark.parametrize("control", TASKS.controls())
def test_a_mix_of_devices_is_noticed(control: str, ends: dict[str, dict[str, Any]]) -> None:
    assert ends[control]["error"] == DeviceError.__name__, ends[control]["result"]
