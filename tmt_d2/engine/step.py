"""One optimizer step: forward and backward of one or several micro-batches, mixed precision, clipping, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tmt_d2.adaptation.task import Record, Task
from tmt_d2.errors import UserError
from tmt_d2.modeling.precision import mixed_precision

Clip = Callable[[list[nn.Parameter]], Any]


class TrainingStep:
    """``backward``, then ``update``; in between the caller may check the losses and the gradient.

    The mean over micro-batches and processes equals the loss of all their images in one batch, because the task counts
    the masks by which its losses are divided.
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
            module: the task, or its wrapper for data-parallel training.
            accumulation_steps: number of micro-batches that a batch is split into.
            amp_dtype: of autocast; float16 uses a gradient scaler. None: float32.
            clip: applied to the parameters when their gradients are complete and unscaled.
        """
        self.module, self.optimizer = module, optimizer
        self.task = cast(Task, module.module if isinstance(module, DistributedDataParallel) else module)
        self.accumulation_steps, self.amp_dtype, self.clip = accumulation_steps, amp_dtype, clip
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)
        self._buffers: list[Tensor] = []  # their values before the step

    def backward(self, batch: Sequence[Record]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the gradients of the mean loss over the micro-batches.

        Returns:
            the losses, detached, and the norm of the gradient.
        """
        self._remember_buffers()
        with mixed_precision(self.device.type, self.amp_dtype):
            micro_batches = [self.task.prepare_batch(part) for part in split(batch, self.accumulation_steps)]
            num_masks = self._mean_count(micro_batches)
        self.optimizer.zero_grad()
        total: dict[str, Tensor] = {}
        for index, micro_batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            waits = not last and isinstance(self.module, DistributedDataParallel)
            with self.module.no_sync() if waits else nullcontext():
                with mixed_precision(self.device.type, self.amp_dtype):
                    losses = self.module(micro_batch, num_masks)
                    loss = sum(losses.values()) / len(micro_batches)
                self.scaler.scale(loss).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / len(micro_batches)
        self.scaler.unscale_(self.optimizer)
        self.task.after_backward()  # not earlier: the scaler fails if there is no gradient at all
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients) if gradients else [torch.zeros((), device=self.device)]
        return total, torch.linalg.vector_norm(torch.stack(norms))

    def update(self) -> None:
        """Clip and step. With float16 a gradient that is not finite only lowers the scale."""
        if self.clip is not None:
            self.clip(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.after_step()

    @torch.no_grad()
    def _remember_buffers(self) -> None:
        buffers = list(self.module.buffers())
        if self._buffers:
            torch._foreach_copy_(self._buffers, buffers)
        else:
            self._buffers = [buffer.clone() for buffer in buffers]

    @torch.no_grad()
    def take_back(self) -> None:
        """Restore the buffers that ``backward`` has changed, such as normalization statistics."""
        torch._foreach_copy_(list(self.module.buffers()), self._buffers)

    def may_overflow(self) -> bool:
        """Return True if the scaler can still lower its scale when a gradient is not finite."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _mean_count(self, micro_batches: Sequence[Sequence[Record]]) -> Tensor | None:
        """Return the mean of the task's ``count_masks`` over all micro-batches.

        None for one micro-batch per process: the criterion then averages over the processes itself.
        """
        if len(micro_batches) == 1:
            return None
        counts = [self.task.count_masks(micro_batch) for micro_batch in micro_batches]
        total = torch.tensor(counts, dtype=torch.float32, device=self.device).sum(0)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(total)
        return total / (comm.get_world_size() * len(micro_batches))

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty if the run had none
            self.scaler.load_state_dict(state["scaler"])


def split(batch: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """Split into consecutive parts of equal length.

    Raises:
        UserError: it cannot be.
    """
    size, rest = divmod(len(batch), parts)
    if rest or not size:
        raise UserError(
            f"it does not divide the {len(batch)} images of a process", key="SOLVER.ACCUMULATION_STEPS", value=parts
        )
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def clipping(enabled: bool, kind: str, value: float, norm_type: float) -> Clip | None:
    """Return Detectron2's SOLVER.CLIP_GRADIENTS: "value", "norm" (of each parameter) or "full_model" (of all)."""
    if not enabled:
        return None
    if kind == "full_model":
        return lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, value, norm_type)
    if kind == "norm":
        return lambda parameters: [torch.nn.utils.clip_grad_norm_(p, value, norm_type) for p in parameters]
    if kind == "value":
        return lambda parameters: torch.nn.utils.clip_grad_value_(parameters, value)
    raise UserError(key="SOLVER.CLIP_GRADIENTS.CLIP_TYPE", value=kind, hint="choose full_model, norm or value")
