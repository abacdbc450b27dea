"""Requests to stop by SIGTERM, SIGUSR1 (Slurm, spot machines), SIGHUP (a closed terminal) and Ctrl-C.

The trainer saves a checkpoint and exits with status 75. A second Ctrl-C exits at once. Under nohup SIGHUP stays
ignored. The handler only records the signal; it is polled after every step, before every image of an evaluation, and
while waiting for the loader. Several processes poll together: a signal to one of them stops all.
"""

from __future__ import annotations

import os
import queue
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

STOPPED = 75  # exit status; EX_TEMPFAIL of sysexits.h
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
ECHO = signal.SIGUSR1  # not SIGINT, of which a second one ends the run
STUCK_AFTER = 20.0  # seconds


class Stopped(SystemExit):
    """Exit with status 75, after a checkpoint is saved."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class _State:
    received: signal.Signals | None = None
    interruptible = False
    handled: queue.SimpleQueue[int] = queue.SimpleQueue()  # filled by the handler, in which it may be used


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Handle the signals as requests to stop within the block; no effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _note) for number in handled()}
    stop_watching = _leave_when_stuck() if comm.get_world_size() > 1 else None
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
        raise
    finally:
        if stop_watching:
            stop_watching()  # first: without a handler its signal would end the process
        for number, handler in previous.items():
            signal.signal(number, handler)
        received, _State.received = _State.received, None
        if failure and received and stop_watching:
            # Another process has failed, the launcher terminates this one, and their connection is broken.
            raise SystemExit(1) from failure


def handled() -> list[signal.Signals]:
    """Return ``SIGNALS`` without SIGHUP if it is ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        signal.signal(number, signal.default_int_handler)  # for the second one
    _State.received = _State.received or signal.Signals(number)
    _State.handled.put(number)
    if _State.interruptible:
        raise Stopped


def requested() -> bool:
    """Return True if this process has received a signal."""
    return _State.received is not None


def reason() -> str:
    return _State.received.name if _State.received else "a signal to another process"


def stop_if_requested() -> None:
    """Raise ``Stopped`` in all processes if any has received a signal; every process must call this."""
    stop = requested()
    if comm.get_world_size() > 1:
        flag = torch.tensor(float(stop), device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        torch.distributed.all_reduce(flag)
        stop = bool(flag)
    if stop:
        raise Stopped


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise ``Stopped`` anywhere in the block; no effect with several processes, which stop together."""
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
    """A loader for evaluation that polls for a request to stop before each batch."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for index in range(max(comm.all_gather(len(self)))):  # numbers of images differ by one
            stop_if_requested()
            if index < len(self):
                with interruptible():
                    batch = next(batches)
                yield batch


def _waits_by_spinning() -> bool:
    """Return True for NCCL, whose waiting takes CPU time; there no single call computes on the CPU for long."""
    return torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl"


def _is_handled() -> bool:
    """Return True once the handler runs, False if it does not within ``STUCK_AFTER``."""
    try:
        _State.handled.get(timeout=STUCK_AFTER)
    except queue.Empty:
        return False
    return True


def _leave_when_stuck() -> Callable[[], None]:
    """Exit if the handler does not run within 20 s after a signal: this process waits for one that has ended.

    Python runs handlers between two instructions, never within a collective operation of a broken group. The launcher's
    SIGTERM would have no effect on such a process, so a thread watches for it. A process in a long step on a CPU, which
    takes CPU time, is left alone.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    main = threading.get_ident()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while data := reading.recv(1):  # written by C code, whatever the main thread does
            if data[0] not in SIGNALS:
                continue
            while not _State.handled.empty():
                _State.handled.get()
            signal.pthread_kill(main, ECHO)  # must be handled from now on ...
            reading.recv(1)  # ... and is written to the socket, too
            cpu_time = time.process_time()
            while not _is_handled():
                cpu_time, previous = time.process_time(), cpu_time
                if _waits_by_spinning() or cpu_time - previous < STUCK_AFTER / 100:
                    os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()

    def stop() -> None:
        signal.set_wakeup_fd(before)
        writing.close()
        watcher.join()

    return stop
