"""Runs that are killed by SIGKILL and resumed: every kind of stage at one step, and fifty kills at random times."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.small_runs import contents, differences, small_cfg
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.step import TrainingStep

pytestmark = pytest.mark.usefixtures("data_root")

KILLS, PERIOD = 50, 3


def fork(function: Callable[[], Any]) -> int:
    """Run ``function`` in a forked process and return its id.

    This process must not have run a model: the threads of OpenMP do not survive a fork.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killing_itself(cfg: Any, step: int) -> Callable[[], Any]:
    def run() -> None:
        update, steps = TrainingStep.update, iter(range(10**6))

        def update_or_die(self: TrainingStep) -> None:
            update(self)
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        TrainingStep.update = update_or_die  # type: ignore[method-assign]
        run_stage(cfg)

    return run


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stage", ["source", "estimator", "linear", "full", "tmt"])
def test_killed_and_resumed_equals_uninterrupted(
    start: Path, tmp_path: Path, stage: str, workers: int, accumulation: int
) -> None:
    changes = {"DATALOADER__NUM_WORKERS": workers, "SOLVER__ACCUMULATION_STEPS": accumulation, "SOLVER__MAX_ITER": 6}
    changes |= {"SOLVER__CHECKPOINT_PERIOD": 3, "TEST__EVAL_PERIOD": 2}

    def cfg(name: str) -> Any:
        return small_cfg(stage, tmp_path / name, start, **changes)

    assert exit_code(fork(lambda: run_stage(cfg("straight")))) == 0
    assert exit_code(fork(killing_itself(cfg("killed"), 4))) == -signal.SIGKILL
    assert exit_code(fork(lambda: run_stage(cfg("killed"), resume=True))) == 0
    assert not differences(tmp_path / "straight" / "model_final.pth", tmp_path / "killed" / "model_final.pth")


def test_fifty_kills_anywhere(start: Path, tmp_path: Path) -> None:
    rng, folder, progress = random.Random(1), tmp_path / "run", tmp_path / "progress"
    cfg = small_cfg("full", folder, start, SOLVER__MAX_ITER=100_000, SOLVER__CHECKPOINT_PERIOD=PERIOD)
    progress.write_text("-1")

    def train() -> None:
        update = TrainingStep.update

        def update_and_report(self: TrainingStep) -> None:
            update(self)
            descriptor = os.open(progress, os.O_WRONLY)
            os.pwrite(descriptor, b"%08d" % (int(progress.read_text()) + 1), 0)
            os.close(descriptor)

        TrainingStep.update = update_and_report  # type: ignore[method-assign]
        run_stage(cfg, resume=True)

    lost, during_save, last = [], 0, -1
    for _ in range(KILLS):
        progress.write_text(f"{last:08d}")
        pid = fork(train)
        deadline = time.monotonic() + 60
        while int(progress.read_text()) <= last + PERIOD and time.monotonic() < deadline:
            time.sleep(0.005)  # until it has got beyond the last checkpoint
        if rng.random() < 0.5:  # wait for a save to begin
            while not list(folder.glob(".model_*.tmp")) and time.monotonic() < deadline:
                pass
        else:
            time.sleep(rng.random() * 0.5)
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        during_save += bool(list(folder.glob(".model_*.tmp")))
        tagged = folder / (folder / "last_checkpoint").read_text()
        files = TMTCheckpointer(None, str(folder)).resumable()  # type: ignore[arg-type]
        assert files[0] == tagged and tagged.is_file()
        loaded = contents(tagged)["/trainer/iteration"]
        done = int(progress.read_text())
        assert 0 <= done - loaded <= PERIOD, (done, loaded)
        lost.append(done - loaded)
        last = loaded
    cfg = small_cfg("full", folder, start, SOLVER__MAX_ITER=last + 2, SOLVER__CHECKPOINT_PERIOD=PERIOD)
    assert exit_code(fork(lambda: run_stage(cfg, resume=True))) == 0
    assert not list(folder.rglob("*.tmp"))
    assert len(list(folder.glob("model_0*.pth"))) <= 3
    print(f"{KILLS} kills, {during_save} while saving; at most {max(lost)} steps lost, checkpoints every {PERIOD}")
