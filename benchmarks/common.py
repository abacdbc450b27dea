"""Timing in turns, peak rates of this machine, FLOPs, tables and JSON."""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tmt_d2.modeling.ops.linear import linear
from tmt_d2.utils.files import write_json
from tmt_d2.utils.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, reuse_freed_memory

Function = Callable[[], Any]


def benchmark_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Parser with --device, --rounds and --output."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=rounds, help="timed repetitions; default: %(default)s")
    parser.add_argument("--output", help="JSON file for the figures")
    return parser


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Add --processor-time, which sets ``clock``."""
    parser.add_argument(
        "--processor-time",
        dest="clock",
        action="store_const",
        const=time.process_time,
        default=time.perf_counter,
        help="processor time instead of time, for a CPU on which other programs run",
    )


def size(text: str) -> tuple[int, int]:
    """HxW as (height, width)."""
    height, width = map(int, text.split("x"))
    return height, width


def in_turns(
    functions: Mapping[str, Function],
    rounds: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    average: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, float]:
    """Run the functions A B A B ... after one warm-up each, so that other work on the machine affects all alike.

    In each round all start with the same state of NumPy's random numbers.

    Returns:
        average seconds of each.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            np.random.seed(index)
            _synchronize(device)
            start = clock()
            function()
            _synchronize(device)
            if index:
                times[name].append(clock() - start)
    return {name: average(values) for name, values in times.items()}


def with_memory_given_back(function: Function) -> Function:
    """Run the function with the thresholds at which glibc arrives by itself, and reuse freed memory afterwards."""
    if not reuse_freed_memory():
        return function

    def run() -> Any:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)
        result = function()
        reuse_freed_memory()
        return result

    return run


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_flops(
    device: str, dtype: torch.dtype = torch.float32, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of a large matrix product, by the faster of PyTorch's libraries."""
    edge = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    functions: dict[str, Function] = {"mm": lambda: a @ b, "linear": lambda: linear(a, b)}
    return 2 * edge**3 / min(in_turns(functions, 5, device, clock, average=min).values())


def peak_bandwidth(device: str) -> float:
    """Bytes per second, read plus written, of a large copy."""
    a = torch.randn(2**26 if device == "cpu" else 2**29, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / in_turns({"copy": lambda: b.copy_(a)}, 5, device, average=min)["copy"]


class Operation(NamedTuple):
    """FLOPs of one operator call (convolutions, matrix products, attention), and bytes of its inputs and outputs."""

    flops: int
    bytes: int


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # in inference mode some operators are not decomposed yet
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        self.operations.append(Operation(flops, _bytes_moved(func, (args, kwargs), out)))
        return out


def _bytes_moved(func: Any, inputs: Any, outputs: Any) -> int:
    """Bytes of the distinct inputs and outputs; 0 for views."""
    read, written = ([leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in (inputs, outputs))
    storages = {tensor.untyped_storage().data_ptr() for tensor in read}
    if not func._schema.is_mutable and all(tensor.untyped_storage().data_ptr() in storages for tensor in written):
        return 0
    distinct = {(tensor.data_ptr(), tensor.numel()): tensor for tensor in (*read, *written)}
    sizes = [(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()) for tensor in distinct.values()]
    return sum(map(min, sizes))  # an expanded tensor is smaller than its shape


def operations(function: Function) -> list[Operation]:
    """Return the operator calls of ``function``, forward and backward; kernels of other libraries are not seen.

    PyTorch's FlopCounterMode follows modules, which fails with custom backward passes and in inference mode.
    """
    with _Counter() as counter:
        function()
    return counter.operations


def flops(function: Function) -> int:
    return sum(operation.flops for operation in operations(function))


def report(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Print machine and table; with --output write both as JSON."""
    machine = {
        "device": torch.cuda.get_device_name() if args.device != "cpu" else _processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    if args.output:
        write_json(args.output, {"machine": machine, "rounds": args.rounds, **facts, "rows": rows})


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
