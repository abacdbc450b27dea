"""What test_distributed does under Detectron2's launcher, under torchrun; and how long a failure takes to end all."""

from __future__ import annotations

import time
from pathlib import Path

from tests import test_distributed as short
from tests.helpers.small_runs import contents

runs = short.runs
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_torchrun_equals_one_process(runs: Path) -> None:
    run = short.drive(runs, "stages", "torchrun", *TORCHRUN)
    assert run.returncode == 0, run.stderr
    short.assert_equal_stages(runs / "one", runs / "torchrun")


def test_torchrun_stops_together_where_one_was_asked(runs: Path) -> None:
    run = short.drive(runs, "stop", "torchrun-stop", *TORCHRUN)
    folder = runs / "torchrun-stop" / "stopping"
    assert contents(folder / (folder / "last_checkpoint").read_text())["/trainer/iteration"] in (1, 2)
    assert "exitcode  : 75" in run.stderr or "exitcode: 75" in run.stderr, run.stderr


def test_a_failure_ends_torchrun_with_its_error(runs: Path) -> None:
    run = short.drive(runs, "fail", "torchrun-fail", *TORCHRUN)
    assert run.returncode != 0
    assert "error: the images of process 1 are gone" in run.stderr


def test_how_long_a_failure_takes_to_end_all(runs: Path) -> None:
    for name, launcher in (("launcher", ()), ("torchrun", TORCHRUN)):
        run = short.drive(runs, "fail", f"timed-{name}", *launcher)
        ended = time.time()
        log = runs / f"timed-{name}" / "failing" / "log.txt.rank1"
        seconds = ended - log.stat().st_mtime  # its last line is written just before the step that fails
        assert run.returncode != 0
        print(f"{name}: all ended {seconds:.1f} s after the last line of the process that failed")
