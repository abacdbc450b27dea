"""The runs of test_distributed under torchrun instead of Detectron2's launcher."""

from __future__ import annotations

from pathlib import Path

from tests.engine import test_distributed as short
from tests.helpers.small_runs import contents

runs = short.runs
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_torchrun_equals_one_process(runs: Path) -> None:
    run = short.drive(runs, "stages", "torchrun", *TORCHRUN)
    assert run.returncode == 0, run.stderr
    short.assert_equal_stages(runs / "one", runs / "torchrun")


def test_a_stop_request_to_one_process_stops_both(runs: Path) -> None:
    run = short.drive(runs, "stop", "torchrun-stop", *TORCHRUN)
    folder = runs / "torchrun-stop" / "stopping"
    assert contents(folder / (folder / "last_checkpoint").read_text())["/trainer/iteration"] in (1, 2)
    assert "exitcode  : 75" in run.stderr or "exitcode: 75" in run.stderr, run.stderr


def test_an_error_of_one_process_ends_torchrun(runs: Path) -> None:
    run = short.drive(runs, "fail", "torchrun-fail", *TORCHRUN)
    assert run.returncode != 0
    assert "the images of process 1 are gone" in run.stderr
