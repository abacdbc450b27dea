"""Running units: their files, failures, and interruptions, after which the same command resumes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.helpers.checkout import environment
from tests.helpers.errors import refuses
from tests.helpers.small_runs import measured, small_units, write_values
from tmt_d2.errors import UserError
from tmt_d2.experiments import running
from tmt_d2.experiments.progress import Progress
from tmt_d2.experiments.running import check_names, check_units, launch_unit, run_all, run_unit
from tmt_d2.experiments.units import Unit
from tmt_d2.projects.report.document import write_report
from tmt_d2.utils.signals import STOPPED

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]


def seven_units(folder: Path, *opts: str) -> list[Unit]:
    """Units of every kind; two cells are equal."""
    sweeps = {"p_T": {"key": "MODEL.TMT.P_T", "values": [0.0], "methods": ["tmt"]}}
    return small_units(folder, *opts, sweeps=sweeps, scores={"images": 2, "pixels": 30, "draws": 1})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_root):
    folder = tmp_path_factory.mktemp("matrix")
    units = seven_units(folder)
    progress = run_all(units, folder / "out", run_unit, {})
    assert not progress.failures
    return folder, units, progress


def test_every_unit_is_recorded_with_its_description(finished) -> None:
    folder, units, progress = finished
    assert len(measured(units)) == len(units)
    records = {unit.name: unit.record() for unit in units}
    swept = records["finetune/cityscapes-bdd100k/tmt/p_T-0/labels1/seed1"]
    assert swept["unit"] == {
        "kind": "finetune", "source": "cityscapes", "target": "bdd100k", "seed": 1, "method": "tmt",
        "label_fraction": 1.0, "sweep": "p_T", "key": "MODEL.TMT.P_T", "value": 0.0,
    }  # fmt: skip
    assert all(record["seconds"] > 0 for record in records.values())
    text = (folder / "out" / "progress.txt").read_text()
    assert all(unit.name in text for unit in units)
    assert set(progress.state.values()) == {"done"}


def test_p_t_zero_is_full_fine_tuning(finished) -> None:
    """The same images in the same order from the same weights: only the method differs, here in nothing."""
    metrics = measured(finished[1])
    full = metrics["finetune/cityscapes-bdd100k/full/labels1/seed1"]
    assert metrics["finetune/cityscapes-bdd100k/tmt/p_T-0/labels1/seed1"] == full


def test_a_wrong_name_in_a_list_is_an_error_before_the_first_unit(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("no_such_picture\n")
    units = small_units(tmp_path, label_lists={"own": str(tmp_path / "own.txt")})
    with pytest.raises(UserError, match="no_such_picture"):
        run_all(units, tmp_path / "out", run_unit, {})
    assert not measured(units)


def test_report_of_a_real_run_shows_its_images(finished) -> None:
    folder, _, _ = finished
    text = write_report(folder / "out", images=1, worst=1).read_text()
    assert 'id="worst"' in text and "data:image/jpeg;base64" in text


def test_nothing_is_run_twice(finished) -> None:
    folder, units, _ = finished

    def run(unit):
        raise AssertionError(f"{unit.name} was run again")

    assert not run_all(units, folder / "out", run, {}).failures
    assert Progress(units, folder / "out", {}).summary() == f"{len(units)} of {len(units)} done"


def three_units(folder: Path) -> list[Unit]:
    return small_units(folder, methods=["full"])


def run_in_child(folder: Path) -> None:
    """Process of the next test."""
    torch.set_num_threads(1)
    run_all(three_units(folder), folder / "out", run_unit, {})


def test_killed_at_any_moment_the_same_command_resumes(finished, tmp_path) -> None:
    """Here between the last checkpoint of a unit and its record; test_resume.py has the moments within training."""
    imports = "from pathlib import Path; from tests.experiments.test_running import run_in_child"
    command = f"{imports}; run_in_child(Path({str(tmp_path)!r}))"
    child = subprocess.Popen([sys.executable, "-c", command], env=environment(), stdout=subprocess.DEVNULL)
    while child.poll() is None and not list((tmp_path / "out").glob("finetune/*/full/*/*/model_final.pth")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    units = three_units(tmp_path)
    assert [unit.is_done() for unit in units] == [True, True, False]
    assert not run_all(units, tmp_path / "out", run_unit, {}).failures
    values = measured(units)
    assert values == {name: measured(finished[1])[name] for name in values}


def test_a_failure_stops_only_what_needs_it(finished, tmp_path) -> None:
    ran = []

    def run(unit):
        ran.append(unit.name)
        if unit.kind == "estimator":
            raise RuntimeError("out of memory\nmore")
        write_values(unit)

    units = seven_units(tmp_path)
    progress = run_all(units, tmp_path / "out", run, {})
    assert list(progress.failures) == [
        "estimator/cityscapes-bdd100k/seed1",
        "finetune/cityscapes-bdd100k/tmt/labels1/seed1",
        "finetune/cityscapes-bdd100k/tmt/p_T-0/labels1/seed1",
    ]
    assert str(progress.first_error) == "out of memory\nmore"
    assert "finetune/cityscapes-bdd100k/full/labels1/seed1" in ran


def test_a_stop_is_a_stop_and_no_failure(tmp_path) -> None:
    def run(unit):
        raise SystemExit(STOPPED)

    with pytest.raises(SystemExit):
        run_all(seven_units(tmp_path), tmp_path / "out", run, {})


def test_missing_data_is_an_error_before_anything_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        run_all(seven_units(tmp_path), tmp_path / "out", lambda unit: pytest.fail("ran"), {})


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
        write_values(unit)

    def work(progress):
        helped.append(run_all(units, tmp_path / progress, run, {}))

    units = seven_units(tmp_path)
    second = threading.Thread(target=work, args=("second",))
    work("first")
    second.join()
    assert sorted(started) == sorted(unit.name for unit in units)
    assert [progress.summary() for progress in helped] == ["7 of 7 done"] * 2


def test_a_process_that_failed_is_named_by_its_status(tmp_path) -> None:
    def run(unit):
        raise SystemExit(2)  # as the launcher does after a worker's error

    progress = run_all(small_units(tmp_path, methods=["full"]), tmp_path / "out", run, {})
    assert "status 2" in progress.failures["source/cityscapes/seed1"]
    assert isinstance(progress.first_error, SystemExit)


def test_scores_are_taken_by_one_process(tmp_path, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(
        running, "launch", lambda _, number, args, device: started.append((args[0].kind, number, device))
    )
    for unit in small_units(tmp_path, "MODEL.DEVICE", "cpu", scores={}, methods=["full"]):
        launch_unit(unit, 4)
    kinds = {"source": 4, "evaluation": 4, "scores": 1, "finetune": 4}
    assert started == [(kind, number, "cpu") for kind, number in kinds.items()]


@pytest.mark.usefixtures("data_root")
def test_each_combination_of_settings_is_checked_before_the_first_unit(tmp_path) -> None:
    swept = {"key": "MODEL.META_ARCHITECTURE", "values": ["MaskFormer"], "methods": ["tmt"]}
    units = small_units(tmp_path, methods=["tmt"], sweeps={"model": swept})
    check_units(units[:-1])
    with refuses("MODEL.META_ARCHITECTURE"):
        check_units(units)


def test_torchrun_is_for_single_stages(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK"):
        run_all(small_units(tmp_path), tmp_path / "out", lambda unit: pytest.fail("ran"), {})


def test_a_pair_of_one_domain_is_warned_of(tmp_path, caplog) -> None:
    check_names(small_units(tmp_path))
    assert not caplog.text
    check_names(small_units(tmp_path, pairs=["cityscapes-cityscapes"]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cityscapes-cityscapes" in caplog.text
