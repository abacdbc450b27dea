"""The estimator stage's step: its loss by hand, and that a discriminator below its target error stands still."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import make_records
from tmt_d2.adaptation import estimator
from tmt_d2.adaptation.estimator import Estimator, balanced_loss
from tmt_d2.engine.step import TrainingStep, clipping
from tmt_d2.modeling.ops.resize import resize, resize_level

TARGET = 0.2


@pytest.fixture
def training(build_tiny: Callable[..., nn.Module]) -> Estimator:
    return Estimator(build_tiny(), TARGET).train()


def make_step(training: Estimator, **options: Any) -> TrainingStep:
    parameters = [parameter for parameter in training.parameters() if parameter.requires_grad]
    clip = clipping(True, "full_model", 1.0, 2.0)
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, fused=True)
    return TrainingStep(training, optimizer, clip=clip, **options)


def run(training: Estimator, step: TrainingStep) -> tuple[dict[str, Tensor], Tensor, set[int]]:
    """One step -> its losses, the norm of the gradient, and the levels that moved; both sets move together."""
    batch = [record | {"domain": index % 2} for index, record in enumerate(make_records(((48, 64),) * 4))]
    sets = (training.model.transferability.discriminators, training.state.twin)
    before = [[[p.detach().clone() for p in level.parameters()] for level in levels] for levels in sets]
    losses, norm = step.backward(batch)
    step.update()
    moved = [
        {
            index
            for index, (level, old) in enumerate(zip(levels, values))
            if any(not torch.equal(p, q) for p, q in zip(level.parameters(), old))
        }
        for levels, values in zip(sets, before)
    ]
    assert moved[0] == moved[1]
    return losses, norm, moved[0]


@pytest.mark.parametrize("options", [{}, {"accumulation_steps": 2}, {"amp_dtype": torch.float16}])
def test_a_level_below_the_target_error_takes_no_step(training: Estimator, options: dict[str, Any]) -> None:
    step = make_step(training, **options)
    if step.scaler.is_enabled():
        step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    losses, norm, moved = run(training, step)
    assert moved == {0, 1, 2}  # and AdamW has momentum now
    training.state.running_error[1] = 0.0
    _, smaller, moved = run(training, step)
    assert moved == {0, 2}  # neither momentum nor weight decay
    for discriminators in (training.model.transferability.discriminators, training.state.twin):
        assert all(p.grad is None for p in discriminators[1].parameters())
        assert all(p.grad is not None for p in discriminators[0].parameters())
    training.state.running_error.zero_()
    losses, none, moved = run(training, step)
    assert moved == set()
    assert none == 0 and smaller > 0 and math.isfinite(norm)
    assert all(loss > 0 for loss in losses.values())  # the loss is still logged
    training.state.running_error[1] = 0.5
    assert run(training, step)[2] == {1}  # its error has risen again


def test_balanced_loss_by_hand() -> None:
    logits = torch.zeros(3, 1, 2)
    logits[0] = 1.0  # the source image's two regions
    domain, exists = torch.tensor([0, 1, 1]), torch.ones(3, 1, 2, dtype=torch.bool)
    exists[2] = False
    source, target = torch.tensor(1.0).exp().log1p(), torch.tensor(2.0).log()
    torch.testing.assert_close(balanced_loss(logits, domain, exists), (source + target) / 2)


def test_t_of_a_class_is_that_of_its_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class for every 32 rows of a image of 227, whose last position reaches beyond it, and T of each position."""
    label = np.repeat(np.arange(8, dtype=np.uint8), 32)[:227, None].repeat(320, 1)
    monkeypatch.setattr(estimator, "read_label", lambda name, space: label)
    monkeypatch.setattr(estimator, "label_space_of", lambda name: None)
    record = {"sem_seg_file_name": "", "dataset": "", "image": torch.zeros(3, 227, 320)}
    t_map = torch.linspace(0, 0.7, 8)[:, None].expand(8, 10)
    sums, counts = np.zeros((2, 255))
    estimator._add_by_class(sums, counts, t_map, 32, record)
    assert (sums[:8] / counts[:8]).tolist() == pytest.approx(t_map[:, 0].tolist())
    assert counts[:8].tolist() == [32 * 320] * 7 + [3 * 320]


def test_a_level_lies_over_the_image_where_its_positions_do() -> None:
    """Positions that say where their middle is; the image ends within the last of them."""
    level = ((torch.arange(3) + 0.5) * 32)[:, None].expand(3, 4)[None]
    over = resize_level(level, 32, (70, 100), (70, 100))[0, :, 50]
    torch.testing.assert_close(over[16:], torch.arange(16, 70) + 0.5)
    assert float((resize(level, (70, 100))[0, 16:, 50] - over[16:]).abs().max()) > 5  # control: stretched
