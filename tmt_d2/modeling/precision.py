"""Mixed precision: PyTorch's autocast, without the operators that it slows down on a CPU.

Under autocast PyTorch computes group normalization in float32 on an NVIDIA GPU, but in bfloat16 on a CPU, where the
backward pass takes five times as long. That of depthwise convolutions with 5 x 5 kernels or strides takes up to eight
times as long in bfloat16 (oneDNN). Both run in float32 here.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cpu_has_bfloat16() -> bool:
    """Return True if this processor multiplies bfloat16 faster than float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def bfloat16_where_faster(device_type: str, key: str) -> torch.dtype | None:
    """Return the dtype for ``mixed_precision``: None on a CPU that is not faster with bfloat16, which is logged once.

    key: config key that selects bfloat16, for the log.
    """
    if device_type != "cpu" or cpu_has_bfloat16():
        return torch.bfloat16
    _log_once(f"{key} bfloat16: this processor is not faster with it, so float32 is used")
    return None


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


@contextmanager
def mixed_precision(device_type: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to ``dtype`` on "cpu" or "cuda"; None: nothing happens."""
    if dtype is None:
        yield
        return
    with torch.autocast(device_type, dtype):
        if device_type != "cpu":
            yield
            return
        with _Float32WhereFaster():
            yield


class _Float32WhereFaster(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.group_norm, F.conv2d) and torch.is_autocast_enabled("cpu"):
            return (_group_norm if func is F.group_norm else _conv2d)(*args, **kwargs)
        return func(*args, **kwargs)


def _group_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.group_norm(input.float(), *args, **kwargs)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if not groups == weight.shape[0] > 1:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    with torch.autocast("cpu", enabled=False):  # depthwise
        output = F.conv2d(input.float(), weight, bias, stride, padding, dilation, groups)
    return output.to(torch.get_autocast_dtype("cpu"))
