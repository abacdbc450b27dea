"""The training step: clipping by hand, mixed precision, and what happens to numbers that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.errors import refuses
from tests.helpers.small_runs import contents, small_cfg
from tmt_d2.adaptation import Task
from tmt_d2.engine.anomaly import find_anomalies
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.step import TrainingStep, clipping, split
from tmt_d2.modeling.pixel_decoder import MSDeformAttnPixelDecoder

pytestmark = pytest.mark.usefixtures("data_root")


class Squares(Task):
    """loss = mean over the batch of (w * x) ** 2."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))

    def count_masks(self, records: Any) -> int:
        return 0

    def losses(self, records: Any, num_masks: Any = None) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * torch.stack(records)).square().sum(1).mean()}


def make_step(**options: Any) -> TrainingStep:
    module = Squares()
    return TrainingStep(module, torch.optim.SGD(module.parameters(), lr=1.0), **options)


ONES = [torch.ones(2), torch.ones(2)]


@pytest.mark.parametrize(
    ("kind", "value", "moved"),
    [
        ("full_model", 5.0, (3.0, 4.0)),
        ("norm", 5.0, (3.0, 4.0)),
        ("value", 7.0, (6.0, 7.0)),
        ("full_model", 50.0, (6.0, 8.0)),
    ],
)
def test_clipping_by_hand(kind: str, value: float, moved: tuple[float, float]) -> None:
    step = make_step(clip=clipping(True, kind, value, 2.0))  # the gradient is (6, 8), its norm 10
    losses, norm = step.backward(ONES)
    assert (float(losses["loss"]), float(norm)) == (25.0, pytest.approx(10.0))
    step.update()
    torch.testing.assert_close(step.parameters[0].data, torch.tensor([3.0, 4.0]) - torch.tensor(moved))


def test_clipping_of_the_config_is_applied() -> None:
    assert clipping(False, "full_model", 1.0, 2.0) is None
    with refuses("SOLVER.CLIP_GRADIENTS.CLIP_TYPE"):
        clipping(True, "all", 1.0, 2.0)


def test_accumulation_is_the_mean() -> None:
    batch = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.ones(2), torch.zeros(2)]
    whole, parts = make_step(), make_step(accumulation_steps=4)
    (first, _), (second, _) = whole.backward(batch), parts.backward(batch)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(whole.parameters[0].grad, parts.parameters[0].grad)
    with refuses("SOLVER.ACCUMULATION_STEPS", 3):
        split(batch, 3)


def test_float16_lowers_its_scale_instead_of_stepping() -> None:
    step = make_step(amp_dtype=torch.float16)
    scale = step.scaler.get_scale()
    _, norm = step.backward([torch.full((2,), 1e18)])
    assert not torch.isfinite(norm) and step.may_overflow()
    step.update()
    assert step.scaler.get_scale() == scale / 2
    assert step.parameters[0].tolist() == [3.0, 4.0]


def test_float16_gradients_are_clipped_unscaled() -> None:
    step = make_step(amp_dtype=torch.float16, clip=clipping(True, "full_model", 5.0, 2.0))
    _, norm = step.backward(ONES)
    assert float(norm) == pytest.approx(10.0)
    step.update()
    torch.testing.assert_close(step.parameters[0].data, torch.zeros(2))


def test_the_scaler_is_resumed() -> None:
    step = make_step(amp_dtype=torch.float16)
    for batch in ([torch.full((2,), 1e18)], ONES):
        step.backward(batch)
        step.update()
    state = step.state_dict()
    other = make_step(amp_dtype=torch.float16)
    assert other.state_dict()["scaler"] != state["scaler"]
    other.load_state_dict(state)
    assert other.state_dict() == state
    make_step().load_state_dict(state)  # resumed without mixed precision,
    other.load_state_dict(make_step().state_dict())  # or with it for the first time


def test_a_step_is_taken_back_with_its_statistics() -> None:
    class Normalized(Squares):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def losses(self, records: Any, num_masks: Any = None) -> dict[str, torch.Tensor]:
            return super().losses([*self.norm(torch.stack(records))])

    module = Normalized()
    step = TrainingStep(module, torch.optim.SGD(module.parameters(), lr=1.0), accumulation_steps=2)
    batch = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.ones(2), torch.zeros(2)]
    for _ in range(2):
        before = [buffer.clone() for buffer in module.buffers()]
        step.backward(batch)
        moved = [buffer.clone() for buffer in module.buffers()]
        assert not any(torch.equal(a, b) for a, b in zip(before, moved))  # mean, variance, and count
        step.take_back()
        assert all(torch.equal(a, b) for a, b in zip(before, module.buffers()))
        step.backward(batch)
        step.update()
        assert all(torch.equal(a, b) for a, b in zip(moved, module.buffers()))


@pytest.mark.slow
def test_not_finite_loss_names_images_and_saves_the_state_before(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MSDeformAttnPixelDecoder.forward

    def broken(self: Any, features: Any) -> Any:
        mask_features, levels = original(self, features)
        return mask_features * torch.tensor(torch.inf), levels

    monkeypatch.setattr(MSDeformAttnPixelDecoder, "forward", broken)
    message = r"loss_\w+ .*(\S+\.jpg, ){3}\S+\.jpg.*not_finite_0000000.pth"
    with pytest.raises(FloatingPointError, match=message):
        run_stage(small_cfg("full", tmp_path, start, MODEL__RESNETS__NORM="BN"))
    before, saved = contents(start), contents(tmp_path / "not_finite_0000000.pth")
    names = [name for name in saved if name.startswith("/model/") and name in before]
    assert any(name.endswith("running_mean") for name in names)  # which the forward pass moves
    assert all(torch.equal(saved[name], before[name]) for name in names)
    assert not (tmp_path / "last_checkpoint").exists()


def test_one_value_per_channel_is_refused(tmp_path: Path) -> None:
    tiny = {"INPUT__CROP__SIZE": (32, 32), "INPUT__MIN_SIZE_TRAIN": (32,), "SOLVER__IMS_PER_BATCH": 1}
    with refuses("INPUT.CROP.SIZE"):
        run_stage(small_cfg("source", tmp_path, MODEL__RESNETS__NORM="BN", **tiny))


@pytest.mark.slow
def test_not_finite_gradient_names_the_parameter(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * torch.nan

    original = MSDeformAttnPixelDecoder.forward

    def broken(self: Any, features: Any) -> Any:
        return original(self, features | {"res5": Breaking.apply(features["res5"])})

    monkeypatch.setattr(MSDeformAttnPixelDecoder, "forward", broken)
    with pytest.raises(FloatingPointError, match=r"gradient of model\.backbone\."):
        run_stage(small_cfg("full", tmp_path / "plain", start))
    with pytest.raises(FloatingPointError, match=r"gradient of the output of model\.backbone\.res5\."):
        run_stage(small_cfg("full", tmp_path / "found", start, SOLVER__DETECT_ANOMALY=True))


@pytest.mark.slow
def test_anomaly_detection_is_silent_where_all_is_well(start: Path, tmp_path: Path) -> None:
    run_stage(small_cfg("tmt", tmp_path, start, SOLVER__DETECT_ANOMALY=True, SOLVER__MAX_ITER=1))


def test_anomalies_by_hand() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    model = nn.Sequential(nn.Linear(2, 2), Root(), nn.ReLU())
    find_anomalies(model)
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    output = model(torch.ones(1, 2))  # 0, whose root has an infinite slope
    with pytest.raises(FloatingPointError, match=r"gradient of the output of 0 \(Linear\)"):
        output.sum().backward()
    nn.init.constant_(model[0].bias, -1.0)
    with pytest.raises(FloatingPointError, match=r"output of 1 \(Root\)"):
        model(torch.ones(1, 2))
