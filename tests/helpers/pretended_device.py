"""An accelerator that is not there: a device whose tensors lie in memory, so that whole stages can run on it.

As with PyTorch's fake tensors no operator takes tensors of two devices, but these have values: labels are counted, the
matcher matches, a loss is a number. Autograd, autocast and the gradient scaler are PyTorch's own.

``register`` cannot be undone: call it in a process of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten
# A number in memory, of no dimension, may meet tensors of the device, but in JOINS and where it is written.
MOVES = (aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default)
JOINS = (aten.cat.default, aten.stack.default)
INDEXED = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
)
# What autocast does on CUDA, as far as it is met here.
LOWER = "conv2d conv1d convolution linear matmul mm mv bmm addmm addbmm baddbmm scaled_dot_product_attention prelu"
FLOAT32 = """exp log log1p pow rsqrt reciprocal softplus layer_norm group_norm norm sum prod softmax log_softmax cumsum
    cumprod logsumexp cosine_similarity nll_loss l1_loss smooth_l1_loss mse_loss binary_cross_entropy_with_logits cdist
    linalg_vector_norm"""
WIDEST = "grid_sampler index_put scatter_add addcmul addcdiv dot cat stack"


class DeviceError(RuntimeError):
    """Tensors of two devices have met, or a tensor of the device was read as if it lay in memory."""


class OnDevice(Tensor):
    """``value``, a tensor in memory, as it would be on the device."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            value.shape,
            value.stride(),
            value.storage_offset(),
            dtype=value.dtype,
            device=torch.device(NAME, 0),
        )
        made.value = value
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.value.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise DeviceError("numpy() of a tensor on the device")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file has the values; read again, they are in memory."""
        return self.value.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.value!r})"


class PretendedDevice(TorchDispatchMode):
    """Within it tensors can be made on the device and moved to it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})


_generators: set[int] = set()  # places of those of the device


class Generator(torch.Generator):
    """Of memory or of the device."""

    def __new__(cls, device: str | torch.device = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        (_generators.add if torch.device(device).type == NAME else _generators.discard)(made._cdata)  # type: ignore
        return made


def _mapped(change: Callable[[Any], Any], item: Any) -> Any:
    """``item`` or, where it is a list, its items changed: what operators take and give is no deeper."""
    if isinstance(item, (list, tuple)):
        return type(item)([change(each) for each in item])
    return change(item)


def dispatch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Apply the operator to the values; what it returns is on the device of its arguments, or on the one it names.

    Raises:
        DeviceError: tensors of two devices, other than a single number in memory; a generator of another device.
    """
    if func is aten._fused_sdp_choice.default:
        return 0  # plain operators: the others are kernels of one device
    owners: dict[int, OnDevice] = {}
    in_memory: list[Tensor] = []

    def value_of(item: Any) -> Any:
        if isinstance(item, OnDevice):
            owners[id(item.value)] = item
            return item.value
        if isinstance(item, Tensor):
            in_memory.append(item)
        return item

    def owner_of(item: Any) -> Any:
        if not isinstance(item, Tensor) or isinstance(item, OnDevice):
            return item
        if id(item) in owners:
            return owners[id(item)]
        return OnDevice(item) if on_device else item

    if func in INDEXED and isinstance(args[0], OnDevice):  # positions may lie in memory
        positions = [each.value if isinstance(each, OnDevice) else each for each in args[1]]
        values = [value_of(args[0]), positions, *(_mapped(value_of, each) for each in args[2:])]
    else:
        values = [_mapped(value_of, each) for each in args]
    options = {name: _mapped(value_of, item) for name, item in kwargs.items() if name != "pin_memory"}
    device = options.get("device")
    on_device = bool(owners) if device is None else device.type == NAME
    if device is not None and on_device:
        options["device"] = torch.device("cpu")
    if (
        owners
        and func not in MOVES
        and (any(item.dim() for item in in_memory) or (in_memory and func in JOINS) or _is_written(func, args))
    ):
        raise DeviceError(f"{func}: tensors on the device and in memory")
    generator = options.get("generator")
    if generator is not None and (generator._cdata in _generators) != on_device:
        raise DeviceError(f"{func}: the generator is of another device")
    return _mapped(owner_of, func(*values, **options))


def _is_written(func: Any, args: Sequence[Any]) -> bool:
    """Whether the operator writes into a tensor in memory."""
    written = [arg for arg, of in zip(args, func._schema.arguments) if of.alias_info and of.alias_info.is_write]
    return any(isinstance(arg, Tensor) and not isinstance(arg, OnDevice) for arg in written)


class _Module(_DummyBackendModule):
    """What PyTorch asks a device for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_libraries: list[torch.library.Library] = []  # a rule lives as long as its library


def register() -> None:
    """Make ``NAME`` a device of this process, with rules for autocast."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    _libraries.extend([others, library])
    rules = ((LOWER, lambda _: torch.get_autocast_dtype(NAME)), (FLOAT32, lambda _: torch.float32), (WIDEST, _widest))
    for names, choose in rules:
        for name in names.split():
            packet = getattr(aten, name)
            for overload in packet.overloads():
                if "out" not in overload:
                    _add_rule(library, getattr(packet, overload), choose)


def _add_rule(library: torch.library.Library, operator: Any, choose: Callable[[list[Tensor]], torch.dtype]) -> None:
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def rule(*args: Any, **kwargs: Any) -> Any:
        lists = [each if isinstance(each, (list, tuple)) else [each] for each in args]
        floats = [item for each in lists for item in each if _is_cast(item)]
        dtype = choose(floats) if floats else torch.float32
        args = tuple(_mapped(lambda item: item.to(dtype) if _is_cast(item) else item, each) for each in args)
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operator(*args, **kwargs)

    library.impl(operator.name().removeprefix("aten::"), rule, "AutocastPrivateUse1")


def _is_cast(item: Any) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point() and item.dtype is not torch.float64


def _widest(floats: list[Tensor]) -> torch.dtype:
    dtype = floats[0].dtype
    for each in floats[1:]:
        dtype = torch.promote_types(dtype, each.dtype)
    return dtype


@contextlib.contextmanager
def pretended_device() -> Iterator[None]:
    """Within it the device that was registered can be used."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes its values in memory and then moves them
    try:
        with (
            mock.patch.object(torch.__future__, "_swap_module_params_on_conversion", True),
            mock.patch.object(torch, "Generator", Generator),
            torch.autograd.set_multithreading_enabled(False),  # other threads do not have the mode
            PretendedDevice(),
        ):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
