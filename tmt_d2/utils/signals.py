"""SIGTERM, SIGUSR1 (Slurm, spot machines), SIGHUP (a terminal that closes) and Ctrl-C ask for a stop: the trainer saves
a checkpoint and leaves with status 75. A second Ctrl-C leaves at once. Under nohup SIGHUP stays ignored.

A signal is only noted when it arrives; the places where a stop loses nothing ask for it: after every step, for every
image of an evaluation, and while waiting for the loader. Where there are several processes they ask together, so
one that was told takes all the others with it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from detectron2.utils import comm

STOPPED = 75  # exit status; EX_TEMPFAIL of sysexits.h: "the user is invited to try again"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
STUCK_AFTER = 20.0  # seconds


class Stopped(SystemExit):
    """Leaves the process with status 75 once everything worth keeping is on disk."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class _State:
    received: signal.Signals | None = None
    interruptible = False
    alive = threading.Event()  # set whenever the handler runs


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within the block the signals ask for a stop. Without effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _note) for number in handled()}
    stop_watching = _leave_when_stuck() if comm.get_world_size() > 1 else None
    try:
        yield
    except Exception as error:
        if requested() and comm.get_world_size() > 1:
            # Another process failed, the launcher is ending this one, and what broke here is their connection.
            raise SystemExit(1) from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if stop_watching:
            stop_watching()
        _State.received = None


def handled() -> list[signal.Signals]:
    """``SIGNALS`` without SIGHUP where nohup has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        signal.signal(number, signal.default_int_handler)  # of the second
    _State.received = signal.Signals(number)
    _State.alive.set()
    if _State.interruptible:
        raise Stopped


def requested() -> bool:
    """Whether this process was asked to stop."""
    return _State.received is not None


def reason() -> str:
    return _State.received.name if _State.received else "another process was asked to stop"


def stop_if_requested() -> None:
    """Raise ``Stopped`` in all processes if any was asked to; every process must call it."""
    asked = requested()
    if comm.get_world_size() > 1:
        flag = torch.tensor(float(asked), device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        torch.distributed.all_reduce(flag)
        asked = bool(flag)
    if asked:
        raise Stopped


@contextmanager
def interruptible() -> Iterator[None]:
    """A wait that a stop may cut short at any point. Several processes cannot agree on that: there it is no effect."""
    if comm.get_world_size() > 1:
        yield
        return
    _State.interruptible = True
    try:
        if requested():
            raise Stopped
        yield
    finally:
        _State.interruptible = False


class Stoppable:
    """The batches of an evaluation loader, with a place to stop before each."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for index in range(max(comm.all_gather(len(self)))):  # processes may have one image more or less
            stop_if_requested()
            if index < len(self):
                with interruptible():
                    batch = next(batches)
                yield batch


def _waits_by_spinning() -> bool:
    """On GPUs a wait for others takes processor time too, and no single call computes on the CPU for long."""
    return torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl"


def _leave_when_stuck() -> Callable[[], None]:
    """End this process if it cannot react to a signal for 20 s: it waits for a process that is no more.

    Python's handlers only run between two instructions, never within a collective operation of a broken group. The
    launcher's SIGTERM would have no effect on such a process, so a thread watches for it. A long step on a CPU is no
    such wait, because it computes.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    main = threading.get_ident()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while data := reading.recv(1):  # written by the C part of a handler, whatever the main thread does
            if data[0] not in SIGNALS:
                continue
            _State.alive.clear()
            signal.pthread_kill(main, data[0])  # the same once more, surely after the event was cleared ...
            reading.recv(1)  # ... which is also written
            computed = time.process_time()
            while not _State.alive.wait(STUCK_AFTER):
                computed, before_that = time.process_time(), computed
                if _waits_by_spinning() or computed - before_that < STUCK_AFTER / 100:
                    os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

    def stop() -> None:
        signal.set_wakeup_fd(before)
        writing.close()

    return stop
