"""Units as Slurm jobs, with an executor that runs them at once."""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace

import pytest

from tests.helpers.small_runs import small_units, write_plan, write_values
from tmt_d2.cli.train_matrix import slurm_parameters
from tmt_d2.errors import UserError
from tmt_d2.experiments.plan import read_plan
from tmt_d2.experiments.running import run_on_slurm, waves
from tmt_d2.experiments.units import units_of

pytestmark = pytest.mark.usefixtures("data_root")


def test_nothing_in_a_wave_waits_for_the_same_wave(tmp_path) -> None:
    units = units_of(read_plan(write_plan(tmp_path, scores={})), tmp_path)
    levels = [[unit.kind for unit in wave] for wave in waves(units)]
    assert set(levels[0]) == {"source"}
    assert set(levels[1]) == {"evaluation", "scores", "estimator", "finetune"}
    assert set(levels[2]) == {"finetune"}
    assert sum(map(len, levels)) == len(units)


class Executor:
    """Runs jobs here and at once, as submitit's would elsewhere."""

    def __init__(self, folder: str) -> None:
        pass

    def update_parameters(self, **parameters) -> None:
        assert parameters == {"slurm_partition": "gpu"}

    def map_array(self, function, *arguments):
        return [SimpleNamespace(result=partial(function, *each)) for each in zip(*arguments)]


def test_slurm_runs_wave_by_wave(tmp_path, monkeypatch) -> None:
    ran = []

    def run(unit):
        ran.append(unit.kind)
        if unit.kind == "estimator":
            raise RuntimeError("job failed\nout of memory")
        write_values(unit)

    units = small_units(tmp_path, scores={})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(UserError) as caught:
            run_on_slurm(units, tmp_path / "out", run, {}, {"slurm_partition": "gpu"})
        assert caught.value.key == "--slurm"
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    progress = run_on_slurm(units, tmp_path / "out", run, {}, {"slurm_partition": "gpu"})
    assert ran == ["source", "evaluation", "scores", "finetune", "estimator"]
    assert set(progress.failures) == {unit.name for unit in units if unit.kind == "estimator" or "/tmt/" in unit.name}
    assert progress.summary() == "4 of 6 done, 2 failed"


def test_slurm_parameters() -> None:
    parameters = slurm_parameters(["slurm_partition=gpu", "gpus_per_node=2", "timeout_min=60"])
    assert parameters == {"slurm_partition": "gpu", "gpus_per_node": 2, "timeout_min": 60}
    with pytest.raises(UserError) as caught:
        slurm_parameters(["gpu"])
    assert caught.value.value == "gpu"
