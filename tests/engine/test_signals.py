"""Signals at any moment: a checkpoint of the last step, exit status 75, and an exact resumption."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.checkout import run_python
from tests.helpers.small_runs import contents, differences, small_cfg
from tmt_d2.data.loaders import MappedRecords
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.step import TrainingStep
from tmt_d2.evaluation.semantic import SemanticEvaluator
from tmt_d2.utils import signals

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]


def signal_at(count: int, function: Callable[..., Any], number: signal.Signals = signal.SIGTERM) -> Callable[..., Any]:
    """Return ``function`` with a signal to its own process in the ``count``-th call."""
    calls = 0

    def signalling(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return function(*args, **options)

    return signalling


# where -> what is wrapped, in which call the signal comes, and the iteration that must be on disk
PLACES: dict[str, tuple[Any, str, int, int]] = {
    "step": (TrainingStep, "backward", 2, 1),
    "loader wait": (MappedRecords, "__getitem__", 10, 1),  # of the third step: it is never made
    "evaluation": (SemanticEvaluator, "process", 1, 1),
    "save": (torch, "save", 1, 2),
}


CHANGES: dict[str, Any] = {
    "SOLVER__CHECKPOINT_PERIOD": 3,  # only a stop saves iteration 1
    "TEST__EVAL_PERIOD": 2,
    "DATASETS__TEST": ("bdd100k_sem_seg_val", "cityscapes_sem_seg_val"),
}


@pytest.fixture(scope="module")
def straight(start: Path, data_root: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    run_stage(small_cfg("full", folder, start, **CHANGES))
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_stop_saves_and_resuming_loses_nothing(start: Path, straight: Path, tmp_path: Path, place: str) -> None:
    owner, name, count, iteration = PLACES[place]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(owner, name, signal_at(count, getattr(owner, name)))
        run_stage(small_cfg("full", tmp_path, start, **CHANGES))
    assert exit_info.value.code == 75
    tag = (tmp_path / "last_checkpoint").read_text()
    assert contents(tmp_path / tag)["/trainer/iteration"] == iteration
    assert not (tmp_path / "evaluation.json").exists()
    run_stage(small_cfg("full", tmp_path, start, **CHANGES), resume=True)
    assert not differences(straight / "model_final.pth", tmp_path / "model_final.pth")
    assert (tmp_path / "evaluation.json").read_text() == (straight / "evaluation.json").read_text()


def test_before_the_first_step_there_is_nothing_to_save(start: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(MappedRecords, "__getitem__", signal_at(1, MappedRecords.__getitem__, signal.SIGUSR1))
        run_stage(small_cfg("full", tmp_path, start))
    assert exit_info.value.code == 75
    assert not list(tmp_path.glob("*.pth"))


def test_ctrl_c_saves_and_a_second_one_leaves_at_once(start: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(TrainingStep, "backward", signal_at(2, TrainingStep.backward, signal.SIGINT))
        run_stage(small_cfg("full", tmp_path / "once", start, SOLVER__CHECKPOINT_PERIOD=3))
    assert exit_info.value.code == 75
    tag = (tmp_path / "once" / "last_checkpoint").read_text()
    assert contents(tmp_path / "once" / tag)["/trainer/iteration"] == 1
    with pytest.raises(KeyboardInterrupt), signals.stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        assert signals.requested()
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_among_several_processes_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that watches for a stuck process sends a signal of its own, which is no second Ctrl-C."""
    echoed, send, before = threading.Event(), signal.pthread_kill, signal.getsignal(signal.SIGUSR1)

    def send_noted(thread: int, number: int) -> None:
        send(thread, number)
        echoed.set()

    monkeypatch.setattr(signal, "pthread_kill", send_noted)
    monkeypatch.setattr(signals.comm, "get_world_size", lambda: 2)
    reasons = []
    with pytest.raises(KeyboardInterrupt), signals.stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        assert echoed.wait(60)
        reasons.append(signals.reason())
        signal.raise_signal(signal.SIGINT)
    assert reasons == ["SIGINT"]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_sighup_asks_for_a_stop_unless_it_is_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGHUP, handler)
            with signals.stop_on_signals():
                signal.raise_signal(signal.SIGHUP)
                assert signals.requested() == (handler is signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested()
        with pytest.raises(signals.Stopped):
            signals.stop_if_requested()
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert not signals.requested()


def test_a_process_that_cannot_react_is_ended_unless_it_computes() -> None:
    """A condition variable of the C library replaces a collective operation that waits for a dead process, hashing
    (a single call without Python's lock, several times longer than the limit) a backward pass."""
    program = """
import ctypes, hashlib, os, signal, threading
from tmt_d2.utils import signals
def stuck():
    library = ctypes.CDLL(None)
    mutex, condition = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_cond_wait(condition, mutex)
def compute():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 6_000_000)
signals.STUCK_AFTER = 0.5
signals.comm.get_world_size = lambda: 2
with signals.stop_on_signals():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    LONG_CALL
"""
    expected = {"stuck()": 1, "compute()": 0}
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda call: run_python("-c", program.replace("LONG_CALL", call)), expected))
    assert [each.returncode for each in ended] == list(expected.values())


def test_loader_processes_outlive_a_signal_to_all(start: Path, tmp_path: Path) -> None:
    def signal_all(self: TrainingStep) -> None:
        update(self)
        own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        assert len(own) >= 2
        for pid in own:
            os.kill(int(pid), signal.SIGTERM)
            os.kill(int(pid), signal.SIGUSR1)

    update = TrainingStep.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "update", signal_all)
        # The test is the workers' parent, whose SIGTERM ends them, so it is sent by another process.
        patch.setattr(os, "kill", lambda pid, number: subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True))
        run_stage(small_cfg("full", tmp_path, start, DATALOADER__NUM_WORKERS=2))
    assert (tmp_path / "model_final.pth").is_file()
