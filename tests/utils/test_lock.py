"""Two runs in one OUTPUT_DIR: the second is refused while the first lives, and only then; a new start says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT, environment
from tests.helpers.small_runs import small_cfg
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.utils.lock import LOCK, sole_run

pytestmark = pytest.mark.slow

HOLD = """
import os, sys
from tmt_d2.utils.lock import sole_run
with sole_run(sys.argv[1]):
    child = os.fork()  # as a loader's process: it outlives its parent
    if child:
        print("held", os.getpid(), flush=True)
    sys.stdin.read() if child else os.read(int(sys.argv[2]), 1)
    os._exit(0)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], int]]]:
    """Starts a process that holds ``tmp_path``, and a child of it that ends with the test."""
    reading, writing = os.pipe()
    processes = []

    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), str(reading)],
            cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(reading,),
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline().split()[1])

    yield start
    os.close(writing)  # the child reads the end
    os.close(reading)
    for process in processes:
        process.kill()
        process.wait()


def test_a_second_run_is_refused_while_the_first_lives(
    holder: Callable[[], tuple[subprocess.Popen[str], int]], tmp_path: Path
) -> None:
    process, pid = holder()
    words = (
        rf"^OUTPUT_DIR {tmp_path} is in use by a run on \S+, process {pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: "
    )
    with (
        pytest.raises(UserError, match=words + "wait for it, end it, or choose another OUTPUT_DIR$"),
        sole_run(tmp_path),
    ):
        pass
    with sole_run(tmp_path / "another"):
        pass
    process.kill()  # its child lives on
    process.wait()
    with sole_run(tmp_path):
        assert str(pid) not in (tmp_path / LOCK).read_text()


@pytest.mark.usefixtures("data_root")
def test_a_stage_holds_its_folder_and_says_what_it_overwrites(
    holder: Callable[[], tuple[subprocess.Popen[str], int]],
    tmp_path: Path,
    start: Path,
) -> None:
    cfg = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1)
    process, _ = holder()
    with pytest.raises(UserError, match="is in use by"):
        run_stage(cfg)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK]
    process.kill()
    process.wait()
    run_stage(cfg)
    run_stage(cfg, resume=True)
    run_stage(cfg, eval_only=True)
    log = tmp_path / "log.txt"
    assert "holds a run already" not in log.read_text()
    run_stage(cfg)
    assert f"{tmp_path} holds a run already, and without --resume it begins anew" in log.read_text()
    assert "(model_final.pth, metrics.json, evaluation.json)" in log.read_text()
