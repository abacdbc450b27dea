"""The teacher of self-training: a moving average of the model, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tmt_d2.adaptation.self_training import teacher as teacher_module
from tmt_d2.adaptation.self_training.teacher import MovingAverage, share_statistics


class Model(nn.Module):
    def __init__(self, value: float, count: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("statistic", torch.tensor(10 * value))
        self.register_buffer("count", torch.tensor(count))


def test_moving_average_by_hand() -> None:
    teacher, average = Model(8.0), MovingAverage(0.75, burn_in=2)
    expected = [8, 8, 2, 3, 3 * 2 / 3 + 4 / 3, (3 * 2 / 3 + 4 / 3) * 0.75 + 6 / 4, None]
    kept = [1, 1, 0, 0.5, 2 / 3, 0.75, 0.75]
    for step, (value, share) in enumerate(zip(expected, kept)):
        student = Model(float([0, 1, 2, 4, 4, 6, 0][step]), count=step)
        assert average.kept() == pytest.approx(share)
        average.update(teacher, student)
        if value is not None:
            assert teacher.weight.item() == pytest.approx(value)
            assert float(teacher.statistic) == pytest.approx(10 * value)  # buffers too
            assert int(teacher.count) == (0 if step < 2 else step)  # copied


def test_buffers_in_any_layout_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a table of timm's Swin-V2, (1, H, W, 2), in the layout of images."""

    def model(value: float) -> nn.Module:
        made = Model(value)
        made.register_buffer("table", value + torch.arange(24.0).view(1, 3, 4, 2))
        return made.to(memory_format=torch.channels_last)

    first, mine = model(0.0), model(100.0)
    assert not mine.table.is_contiguous()
    sent = torch.cat([buffer.flatten() for buffer in first.buffers() if buffer.is_floating_point()])
    monkeypatch.setattr(teacher_module.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: tensor.copy_(sent))
    share_statistics(mine)
    assert torch.equal(mine.table, first.table) and torch.equal(mine.statistic, first.statistic)
    assert mine.weight.item() == 100  # a parameter is averaged alike in all processes


def test_the_step_of_the_average_is_kept() -> None:
    average, other = MovingAverage(0.9, 0), MovingAverage(0.9, 0)
    for _ in range(3):
        average.update(Model(0.0), Model(1.0))
    other.load_state_dict(average.state_dict())
    assert other.kept() == average.kept() == 0.75
