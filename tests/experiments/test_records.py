"""Files that units leave: a record and only the weights once they have ended, at whatever moment they are killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.errors import refuses
from tests.helpers.small_runs import Killed, contents, measured, small_cfg, small_units
from tmt_d2.adaptation import Task
from tmt_d2.adaptation.estimator import Estimator
from tmt_d2.engine.checkpoint import checkpointer as checkpoint
from tmt_d2.engine.run_dir import RunDir
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.trainer import Trainer
from tmt_d2.experiments import units as units_module
from tmt_d2.experiments.running import run_all, run_unit
from tmt_d2.experiments.units import Unit, select

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]


def two_units(folder: Path) -> list[Unit]:
    folder.mkdir(exist_ok=True)
    return select(small_units(folder), "finetune/*/full")


def run(units: Sequence[Unit], folder: Path) -> None:
    assert not run_all(units, folder / "out", run_unit, {}).failures


def checkpoints(units: Sequence[Unit]) -> list[str]:
    return [path.name for unit in units for path in sorted(unit.folder.rglob("*.pth"))]


def test_units_that_ended_keep_their_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units, whole = two_units(tmp_path / "small"), two_units(tmp_path / "whole")
    run(units, tmp_path / "small")
    with monkeypatch.context() as patch:  # control
        patch.setattr(units_module, "keep_weights", lambda folder: None)
        run(whole, tmp_path / "whole")
    assert checkpoints(units) == ["model_final.pth"] * 2
    assert checkpoints(whole) == ["model_0000000.pth", "model_final.pth"] * 2
    assert measured(units) == measured(whole)
    for unit, before in zip(units, whole):
        small, large = (contents(each.folder / "model_final.pth") for each in (unit, before))
        assert small.pop("/ended_after") == 2
        assert small.keys() <= large.keys()
        for key, value in small.items():
            assert torch.equal(value, large[key]) if isinstance(value, torch.Tensor) else value == large[key]


MOMENTS: dict[str, tuple[Any, str]] = {
    "before the small checkpoint is whole": (checkpoint.torch, "save"),
    "before the record": (units_module, "write_json"),
}


def units_to_kill(folder: Path) -> list[Unit]:
    alignment = ("TRANSFER.ALIGNMENT.ITERATIONS", "1", "TRANSFER.ALIGNMENT.PIXELS", "20")
    return small_units(folder, *alignment, methods=["leep", "tmt"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_root: None) -> dict[str, Any]:
    """Results of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("finished")
    units = units_to_kill(folder)
    run(units, folder)
    return measured(units)


def results_of(unit: Unit) -> str:
    return Estimator.results if unit.kind == "estimator" else Task.results


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_between_its_end_and_its_record(
    finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Each unit in turn: the same command only evaluates what was trained to its end, and the results are the same."""
    units = units_to_kill(tmp_path)
    place, name = MOMENTS[moment]
    train = Trainer.train
    for index, unit in enumerate(units):
        if unit.kind == "evaluation":  # trains nothing
            run(units[: index + 1], tmp_path)
            continue
        original = getattr(place, name)

        def after_training(*args: Any, original: Any = original, unit: Unit = unit, **others: Any) -> Any:
            ended = (unit.folder / results_of(unit)).is_file()
            if ended:
                raise Killed
            return original(*args, **others)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(place, name, after_training)
            run(units[: index + 1], tmp_path)
        assert not unit.is_done()
        assert ("/ended_after" in contents(unit.folder / "model_final.pth")) == (moment == "before the record")
        (unit.folder / results_of(unit)).unlink()  # the worst case: these are missing, too

        def evaluate(self: Trainer) -> dict[str, Any]:
            assert self.start_iter == self.max_iter
            return train(self)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train", evaluate)
            run(units[: index + 1], tmp_path)
    assert checkpoints(units) == ["model_final.pth"] * 4  # nothing of the alignment is left
    assert measured(units) == finished


def test_control_without_a_look_at_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = two_units(tmp_path)
    run(units, tmp_path)
    (units[0].folder / "stage.json").unlink()
    monkeypatch.setattr(RunDir, "has_ended", lambda self: False)
    assert units[0].name in run_all(units, tmp_path / "out", run_unit, {}).failures


def test_what_ended_as_a_unit_does_not_train_on_but_is_a_start(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    cfg = small_cfg("full", folder, start, SOLVER__MAX_ITER=1)
    run_stage(cfg)
    assert contents(folder / "model_final.pth")["/trainer/iteration"] == 0  # a run of train_net.py keeps everything
    Unit("run", cfg, (), {"kind": "finetune", "source": "cityscapes", "seed": 3}).write_record(1.0)
    longer = small_cfg("full", folder, start, SOLVER__MAX_ITER=2)
    with refuses("SOLVER.MAX_ITER", 2):
        run_stage(longer, resume=True)
    run_stage(small_cfg("full", tmp_path / "next", folder / "model_final.pth", SOLVER__MAX_ITER=1))
    run_stage(longer)  # not resumed: begins anew, and can itself be resumed
    run_stage(small_cfg("full", folder, start, SOLVER__MAX_ITER=3), resume=True)
    assert contents(folder / "model_final.pth")["/trainer/iteration"] == 2
