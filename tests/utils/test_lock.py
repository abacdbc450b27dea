"""Two runs in one OUTPUT_DIR: the second is refused while the first lives, and only then; a new start says so."""

from __future__ import annotations

import multiprocessing
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
from tmt_d2.utils.lock import LOCK, file_lock, folder_lock

pytestmark = pytest.mark.slow

HOLD = """
import os, sys
from tmt_d2.utils.lock import folder_lock
with folder_lock(sys.argv[1]):
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
    with pytest.raises(UserError, match=f"process {pid}") as error, folder_lock(tmp_path):
        pass
    assert (error.value.key, error.value.value) == ("OUTPUT_DIR", str(tmp_path))
    with folder_lock(tmp_path / "another"):
        pass
    process.kill()  # its child lives on
    process.wait()
    with folder_lock(tmp_path):
        assert str(pid) not in (tmp_path / LOCK).read_text()


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with file_lock(tmp_path / "lock") as holder, file_lock(tmp_path / "lock") as second:
            assert not holder and second


def test_a_lock_file_is_removed_also_after_an_error(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        assert (tmp_path / LOCK).is_file()
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        raise ZeroDivisionError
    assert not [*tmp_path.iterdir()]


def count_up(folder: Path, times: int) -> None:
    for _ in range(times):
        with file_lock(folder / "lock", wait=True) as holder:
            assert not holder
            count = int((folder / "count").read_text())
            os.sched_yield()
            (folder / "count").write_text(str(count + 1))


def test_a_removed_lock_file_lets_no_second_process_in(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    processes = [multiprocessing.get_context("fork").Process(target=count_up, args=(tmp_path, 300)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "1200" and not (tmp_path / "lock").exists()


@pytest.mark.usefixtures("data_root")
def test_a_stage_holds_its_folder_and_warns_of_a_run_in_it(
    holder: Callable[[], tuple[subprocess.Popen[str], int]],
    tmp_path: Path,
    start: Path,
) -> None:
    cfg = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1)
    process, _ = holder()
    with pytest.raises(UserError, match="OUTPUT_DIR"):
        run_stage(cfg)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK]
    process.kill()
    process.wait()
    run_stage(cfg)
    run_stage(cfg, resume=True)
    run_stage(cfg, eval_only=True)
    log = tmp_path / "log.txt"
    files = "(model_final.pth, metrics.json, evaluation.json)"
    assert files not in log.read_text()
    run_stage(cfg)
    assert files in log.read_text()
