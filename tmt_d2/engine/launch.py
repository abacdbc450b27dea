"""Launcher of data-parallel training: Detectron2's or ``torchrun``, on GPUs or the CPU."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from detectron2 import engine
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException

from tmt_d2.errors import USER_ERRORS, UserError, one_line_errors
from tmt_d2.utils.ports import check_port
from tmt_d2.utils.signals import handled

PATIENCE = 5.0  # seconds
VISIBLE = "CUDA_VISIBLE_DEVICES"


def launch(
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: Sequence[Any] = (),
    device: str = "cuda",
) -> None:
    """Run ``main(*args)`` in every process; under ``torchrun`` (RANK and WORLD_SIZE are set), in this one.

    Exits with the status of the first process that fails; the others are terminated within 30 s. SIGTERM, SIGUSR1 and
    SIGHUP are forwarded; Ctrl-C reaches all processes by itself. On the CPU and without a GPU the backend is gloo.

    Args: as Detectron2's ``launch``; num_processes: per machine. device: MODEL.DEVICE.

    Raises:
        UserError: a number or the address is invalid, or the processes cannot have a GPU each.
    """
    _check(num_processes, num_machines, machine_rank, dist_url)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _join_torchrun(device)
        _run(main, args)
        return
    if num_processes * num_machines == 1:
        main(*args)
        return
    _use_gpus(device, num_processes, "--num-gpus")
    with _forward_signals(), _visible_gpus(device):
        try:
            engine.launch(_run, num_processes, num_machines, machine_rank, dist_url, args=(main, args))
        except ProcessExitedException as error:
            sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)


def _check(num_processes: int, num_machines: int, machine_rank: int, dist_url: str) -> None:
    for option, value in (("--num-gpus", num_processes), ("--num-machines", num_machines)):
        if value < 1:
            raise UserError("must be at least 1", key=option, value=value)
    if not 0 <= machine_rank < num_machines:
        raise UserError(f"must be from 0 to {num_machines - 1}", key="--machine-rank", value=machine_rank)
    if num_machines > 1 and dist_url == "auto":
        raise UserError("name a port of the first machine, tcp://HOST:PORT", key="--dist-url", value=dist_url)
    if dist_url.startswith("tcp://"):
        check_port("--dist-url", dist_url, dist_url.rpartition(":")[2])


def _run(main: Callable[..., Any], args: Sequence[Any]) -> None:
    with one_line_errors():
        try:
            main(*args)
        except USER_ERRORS:
            raise
        except Exception:
            if comm.get_world_size() > 1:  # probably another process has failed and reports the reason;
                time.sleep(PATIENCE)  # the launcher is about to terminate this one
            raise


def _use_gpus(device: str, processes: int, option: str) -> bool:
    """Return True if the processes of this machine are on GPUs.

    Raises:
        UserError: MODEL.DEVICE names one GPU for all, or there are not enough.
    """
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return False
    if device != "cuda":
        raise UserError("each process needs a GPU of its own", key="MODEL.DEVICE", value=device, hint="set it to cuda")
    if processes > torch.cuda.device_count():
        raise UserError(f"more than the {torch.cuda.device_count()} GPUs of this machine", key=option, value=processes)
    return True


def _join_torchrun(device: str) -> None:
    if distributed.is_initialized() or int(os.environ["WORLD_SIZE"]) == 1:
        return
    use_gpu = _use_gpus(device, int(os.environ["LOCAL_WORLD_SIZE"]), "--nproc-per-node")
    if use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if use_gpu else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


@contextmanager
def _visible_gpus(device: str) -> Iterator[None]:
    """Hide the GPUs from new processes of a model on the CPU: Detectron2's launcher uses NCCL where it sees one."""
    before = os.environ.get(VISIBLE)
    if device == "cpu":
        os.environ[VISIBLE] = ""
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        if before is not None:
            os.environ[VISIBLE] = before


@contextmanager
def _forward_signals() -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            if child.pid and number != signal.SIGINT:
                os.kill(child.pid, number)

    previous = {number: signal.signal(number, forward) for number in handled()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
