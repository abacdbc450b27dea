"""What the benchmarks share: taking turns, medians, a peak rate of this machine, tables and JSON."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Function = Callable[[], Any]


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def in_turns(functions: Mapping[str, Function], rounds: int, device: str = "cpu") -> dict[str, dict[str, float]]:
    """Run the functions A B A B ... after one warm-up each; seconds as {"median", "min", "max"} for each.

    Taking turns inside one process lets both suffer alike from whatever else the machine does.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if index:
                times[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in times.items()
    }


def peak_flops(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Measured rate of a large matrix product, FLOP/s: the roof of compute-bound parts."""
    size = 1536 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / in_turns({"mm": lambda: a @ b}, 5, device)["mm"]["min"]


def peak_bandwidth(device: str) -> float:
    """Measured rate of a large copy, bytes read plus written per second: the roof of memory-bound parts."""
    a = torch.randn(2**26 if device == "cpu" else 2**29, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / in_turns({"copy": lambda: b.copy_(a)}, 5, device)["copy"]["min"]


class _Counter(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # in inference mode some operators arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out


def flops(function: Function) -> int:
    """Of the convolutions, matrix products and attention that ``function`` does in PyTorch, forward and backward.

    Unlike PyTorch's FlopCounterMode it follows no modules, which custom backward passes and inference mode confuse.
    """
    with _Counter() as counter:
        function()
    return counter.total


def machine(device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
