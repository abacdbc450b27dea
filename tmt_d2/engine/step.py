"""One optimiser step: forward and backward of one or several micro-batches, mixed precision, clipping, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tmt_d2.errors import UserError
from tmt_d2.modeling.precision import mixed_precision

Clip = Callable[[list[nn.Parameter]], Any]


class TrainingStep:
    """``backward`` then ``update``; between them the caller may look at the losses and at the gradient.

    The mean over micro-batches and processes is the loss of all their images in one batch: a module that divides by
    counts of the batch says them beforehand in ``count_masks`` and takes their mean as ``num_masks``. One whose parts
    stop learning takes their gradients away in ``withhold_gradients``; what has none is not stepped. One that does
    something after each step does it in ``after_update``.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        accumulation_steps: int = 1,
        amp_dtype: torch.dtype | None = None,
        clip: Clip | None = None,
    ):
        """
        Args:
            module: batch -> dict of weighted losses; may be wrapped for data-parallel training.
            accumulation_steps: micro-batches that a batch is split into.
            amp_dtype: of autocast; float16 comes with a gradient scaler. None: float32.
            clip: applied to the parameters once their gradients are complete and unscaled.
        """
        self.module, self.optimizer = module, optimizer
        self.accumulation_steps, self.amp_dtype, self.clip = accumulation_steps, amp_dtype, clip
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)
        self._buffers: list[Tensor] = []  # their values before the step

    def backward(self, batch: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of the mean loss over the micro-batches -> the losses, detached, and the gradient's norm."""
        micro_batches = split(batch, self.accumulation_steps)
        self._remember_buffers()
        with mixed_precision(self.device.type, self.amp_dtype):
            if hasattr(self._plain_module, "prepare_batch"):
                micro_batches = [self._plain_module.prepare_batch(micro_batch) for micro_batch in micro_batches]
            arguments = self._normalisers(micro_batches)
        self.optimizer.zero_grad()
        total: dict[str, Tensor] = {}
        for index, micro_batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            waits = not last and isinstance(self.module, DistributedDataParallel)
            with self.module.no_sync() if waits else nullcontext():
                with mixed_precision(self.device.type, self.amp_dtype):
                    losses = self.module(micro_batch, **arguments)
                    loss = sum(losses.values()) / len(micro_batches)
                self.scaler.scale(loss).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / len(micro_batches)
        self.scaler.unscale_(self.optimizer)
        if hasattr(self._plain_module, "withhold_gradients"):  # afterwards: the scaler insists on having seen some
            self._plain_module.withhold_gradients()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients) if gradients else [torch.zeros((), device=self.device)]
        return total, torch.linalg.vector_norm(torch.stack(norms))

    def update(self) -> None:
        """Clip and step. With float16 a gradient that is not finite only lowers the scale, as it should."""
        if self.clip is not None:
            self.clip(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if hasattr(self._plain_module, "after_update"):
            self._plain_module.after_update()

    @torch.no_grad()
    def _remember_buffers(self) -> None:
        buffers = list(self.module.buffers())
        if self._buffers:
            torch._foreach_copy_(self._buffers, buffers)
        else:
            self._buffers = [buffer.clone() for buffer in buffers]

    @torch.no_grad()
    def take_back(self) -> None:
        """Undo ``backward``: the forward pass has changed buffers, such as normalization statistics."""
        torch._foreach_copy_(list(self.module.buffers()), self._buffers)

    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite is the scaler's business: its scale can still be lowered."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    @property
    def _plain_module(self) -> Any:
        return self.module.module if isinstance(self.module, DistributedDataParallel) else self.module

    def _normalisers(self, micro_batches: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Tensor]:
        module = self._plain_module
        if len(micro_batches) == 1 or not hasattr(module, "count_masks"):
            return {}
        counts = [module.count_masks(batch) for batch in micro_batches]
        total = torch.tensor(counts, dtype=torch.float32, device=self.device).sum(0)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(total)
        return {"num_masks": total / (comm.get_world_size() * len(micro_batches))}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the run so far had none
            self.scaler.load_state_dict(state["scaler"])


def split(batch: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """Consecutive parts of equal length.

    Raises:
        UserError: there are none.
    """
    size, rest = divmod(len(batch), parts)
    if rest or not size:
        raise UserError(f"SOLVER.ACCUMULATION_STEPS {parts} does not divide the {len(batch)} images of a process")
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def clipping(enabled: bool, kind: str, value: float, norm_type: float) -> Clip | None:
    """Detectron2's SOLVER.CLIP_GRADIENTS: "value", "norm" (of each parameter), or "full_model" (of all together)."""
    if not enabled:
        return None
    if kind == "full_model":
        return lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, value, norm_type)
    if kind == "norm":
        return lambda parameters: [torch.nn.utils.clip_grad_norm_(p, value, norm_type) for p in parameters]
    if kind == "value":
        return lambda parameters: torch.nn.utils.clip_grad_value_(parameters, value)
    raise UserError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {kind!r}: choose full_model, norm or value")
