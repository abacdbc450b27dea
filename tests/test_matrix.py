"""Running a matrix: what units leave, and that any interruption is made good by the same command."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.small_runs import ROOT, make_scenes, options, write_plan
from tmt_d2.experiments import running
from tmt_d2.experiments.estimate import Estimate
from tmt_d2.experiments.plan import read_plan
from tmt_d2.experiments.progress import Progress
from tmt_d2.experiments.report.writing import write_report
from tmt_d2.experiments.running import claimed, run_all, run_unit
from tmt_d2.experiments.slurm import parse_parameters, run_on_slurm
from tmt_d2.experiments.units import units_of
from tmt_d2.processes.signals import STOPPED


@pytest.fixture(scope="module", autouse=True)
def scenes(tmp_path_factory):
    root = make_scenes(tmp_path_factory.mktemp("scenes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


SWEEP = {"p_T": {"key": "MODEL.TMT.P_T", "values": [0.0], "methods": ["tmt"]}}
SCORES = {"images": 2, "pixels": 30, "draws": 1}


def small_units(folder: Path, *opts: str, **changes):
    settings = {"pairs": ["cityscapes-bdd100k"], "sources": None, "sweeps": SWEEP, "scores": SCORES}
    small = options(SOLVER__MAX_ITER=2)
    position = small.index("DATASETS.TEST")
    del small[position : position + 2]
    return units_of(read_plan(write_plan(folder, **{**settings, **changes})), folder / "out", [*small, *opts])


def results(units) -> dict[str, dict]:
    files = {unit.name: unit.folder / ("scores.json" if unit.kind == "scores" else "evaluation.json") for unit in units}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes):
    folder = tmp_path_factory.mktemp("matrix")
    units = small_units(folder)
    progress = run_all(units, folder / "out", run_unit, {})
    assert not progress.failures
    return folder, units, progress


def test_every_unit_is_recorded_with_what_it_is(finished) -> None:
    folder, units, progress = finished
    assert len(results(units)) == len(units) - 1  # all but the estimator
    records = {unit.name: json.loads((unit.folder / "stage.json").read_text()) for unit in units}
    swept = records["finetune/cityscapes-bdd100k/tmt/p_T-0/labels1/seed1"]
    assert swept["unit"] == {
        "kind": "finetune", "source": "cityscapes", "target": "bdd100k", "seed": 1, "method": "tmt",
        "label_fraction": 1.0, "sweep": "p_T", "key": "MODEL.TMT.P_T", "value": 0.0,
    }  # fmt: skip
    assert all(record["seconds"] > 0 for record in records.values())
    text = (folder / "out" / "progress.txt").read_text()
    assert f"{len(units)} of {len(units)} done" in text
    assert all(unit.name in text for unit in units)
    assert set(progress.state.values()) == {"done"}


def test_p_t_zero_is_full_fine_tuning(finished) -> None:
    """The same images in the same order from the same weights: only the method differs, here in nothing."""
    found = results(finished[1])
    full = found["finetune/cityscapes-bdd100k/full/labels1/seed1"]
    assert found["finetune/cityscapes-bdd100k/tmt/p_T-0/labels1/seed1"] == full


def test_report_of_a_real_run_shows_its_pictures(finished) -> None:
    folder, _, _ = finished
    text = write_report(folder / "out", images=1).read_text()
    (views,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert [view[:22] for view in json.loads(views)] == ["data:image/jpeg;base64"] * 9
    for name in ("source model", "full: errors", "tmt: T (stride 8)"):
        assert f">{name}</option>" in text
    assert "1 pair, 1 seed, all labels." in text


def test_nothing_is_run_twice(finished) -> None:
    folder, units, _ = finished

    def run(unit):
        raise AssertionError(f"{unit.name} was run again")

    assert not run_all(units, folder / "out", run, {}).failures
    assert Progress(units, folder / "out", {}).summary() == f"{len(units)} of {len(units)} done"


def test_other_settings_are_refused(finished) -> None:
    folder, _, _ = finished
    with pytest.raises(ValueError, match="run with other settings"):
        run_all(small_units(folder, "SOLVER.BASE_LR", "0.5"), folder / "out", run_unit, {})


def test_time_is_estimated_from_what_was_measured(finished) -> None:
    _, units, _ = finished
    tuned = [unit for unit in units if unit.kind == "finetune" and unit.about["method"] == "tmt"]
    estimate = Estimate(tuned[:1], {"iteration": 100.0, "evaluation": 7.0})
    measured = json.loads((tuned[0].folder / "stage.json").read_text())["seconds"]
    assert estimate.seconds(tuned[1]) == pytest.approx(measured)
    by_kind = {unit.kind: unit for unit in units}
    assert estimate.seconds(by_kind["source"]) == 2 * 100 + 7
    assert estimate.seconds(by_kind["evaluation"]) == 7
    assert Estimate([], {}).seconds(by_kind["source"]) is None


def test_what_is_not_known_is_said(tmp_path) -> None:
    units = small_units(tmp_path)
    assert Progress(units, tmp_path, {}).summary() == "0 of 7 done, about ? left"
    guess = {"evaluation": 90}  # of the evaluation and the scores, not of the others
    assert Progress(units, tmp_path, guess).summary() == "0 of 7 done, about 3 min 00 s and what is unknown (?) left"
    assert not (tmp_path / "out").exists()  # a look touches nothing


def run_in_child(folder: Path) -> None:
    """What the process of the next test does."""
    torch.set_num_threads(1)
    run_all(small_units(folder), folder / "out", run_unit, {})


def test_killed_at_any_moment_the_same_command_goes_on(finished, tmp_path) -> None:
    """Here between the last checkpoint of a unit and its record; test_resume.py has the moments within training."""
    command = (
        f"from pathlib import Path; from tests.test_matrix import run_in_child; run_in_child(Path({str(tmp_path)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.DEVNULL)
    while child.poll() is None and not list((tmp_path / "out").glob("finetune/*/full/*/*/model_final.pth")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    units = small_units(tmp_path)
    assert 3 <= sum(unit.is_done() for unit in units) < len(units)
    assert not run_all(units, tmp_path / "out", run_unit, {}).failures
    found, expected = results(units), results(finished[1])
    name = "scores/cityscapes-bdd100k/seed1"  # BLAS may round another process's memory in another way
    assert found.pop(name) == pytest.approx(expected.pop(name), rel=1e-4)
    assert found == expected


def write_results_of(unit) -> None:
    content = {
        "scores": {"LEEP": -1.0},
        "estimator": {"proxy_a_distance": [0.5]},
    }.get(unit.kind, {"split": {"mIoU": 1.0}})
    name = {"scores": "scores.json", "estimator": "estimator.json"}.get(unit.kind, "evaluation.json")
    (unit.folder / name).write_text(json.dumps(content))


def test_a_failure_stops_only_what_needs_it(finished, tmp_path) -> None:
    ran = []

    def run(unit):
        ran.append(unit.name)
        if unit.kind == "estimator":
            raise RuntimeError("out of memory\nmore")
        write_results_of(unit)

    units = small_units(tmp_path)
    progress = run_all(units, tmp_path / "out", run, {})
    assert progress.failures == {
        "estimator/cityscapes-bdd100k/seed1": "out of memory more",
        "finetune/cityscapes-bdd100k/tmt/labels1/seed1": "needs estimator/cityscapes-bdd100k/seed1",
        "finetune/cityscapes-bdd100k/tmt/p_T-0/labels1/seed1": "needs estimator/cityscapes-bdd100k/seed1",
    }
    assert "finetune/cityscapes-bdd100k/full/labels1/seed1" in ran
    assert "4 of 7 done, 3 failed" in (tmp_path / "out" / "progress.txt").read_text()


def test_a_stop_is_a_stop_and_no_failure(tmp_path) -> None:
    def run(unit):
        raise SystemExit(STOPPED)

    with pytest.raises(SystemExit):
        run_all(small_units(tmp_path), tmp_path / "out", run, {})


def test_missing_data_is_told_before_anything_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        run_all(small_units(tmp_path), tmp_path / "out", lambda unit: pytest.fail("ran"), {})


def test_two_runs_share_the_work(tmp_path, monkeypatch) -> None:
    """Side by side, each unit once; threads stand for processes, as a file lock is of an open file. Only progress.txt
    is written by one thread of a process, so each gets a folder for its own."""
    monkeypatch.setattr(running, "POLL", 0.01)
    started, both_at_work, helped = [], threading.Event(), []

    def run(unit):
        started.append(unit.name)
        if len(started) == 1:
            assert unit.kind == "source"
            second.start()  # finds nothing to do yet: all other units need this one
        elif len(started) == 2:
            assert both_at_work.wait(60)
        else:
            both_at_work.set()
        write_results_of(unit)

    def work(progress):
        helped.append(run_all(units, tmp_path / progress, run, {}))

    units = small_units(tmp_path)
    second = threading.Thread(target=work, args=("second",))
    work("first")
    second.join()
    assert sorted(started) == sorted(unit.name for unit in units)
    assert [progress.summary() for progress in helped] == ["7 of 7 done"] * 2


def test_a_lock_ends_with_its_block(tmp_path) -> None:
    with claimed(tmp_path / "lock") as mine, claimed(tmp_path / "lock") as second:
        assert (mine, second) == (True, False)
    with claimed(tmp_path / "lock") as mine:
        assert mine


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
        write_results_of(unit)

    units = small_units(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(ValueError, match="--slurm needs submitit"):
            run_on_slurm(units, tmp_path / "out", run, {}, {"slurm_partition": "gpu"})
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    progress = run_on_slurm(units, tmp_path / "out", run, {}, {"slurm_partition": "gpu"})
    assert ran == ["source", "evaluation", "scores", "finetune", "estimator"]
    assert sorted(progress.failures.values()) == ["out of memory", "what it needs failed", "what it needs failed"]
    assert progress.summary() == "4 of 7 done, 3 failed"


def test_slurm_parameters() -> None:
    found = parse_parameters(["slurm_partition=gpu", "gpus_per_node=2", "timeout_min=60"])
    assert found == {"slurm_partition": "gpu", "gpus_per_node": 2, "timeout_min": 60}
    with pytest.raises(ValueError, match="--slurm gpu: write KEY=VALUE"):
        parse_parameters(["gpu"])
