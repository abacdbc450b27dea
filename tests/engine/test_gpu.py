"""Tests on a GPU; skipped without one."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from tests.helpers.models import make_records, tiny_cfg
from tests.modeling.test_deformable_attention import SHAPES, inputs
from tmt_d2.modeling import ms_deform_attn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def test_the_backends_of_deformable_attention_agree() -> None:
    """The fastest that is installed against PyTorch's operators, values and gradients in float32."""
    tensors = [tensor.cuda().requires_grad_() for tensor in inputs(D=32, dtype=torch.float32)]
    expected, output = (ms_deform_attn(tensors[0], SHAPES, *tensors[1:], backend) for backend in ("torch", "auto"))
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-5)
    expected_gradients = torch.autograd.grad(expected.square().sum(), tensors)
    for gradient, reference in zip(torch.autograd.grad(output.square().sum(), tensors), expected_gradients):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_and_gradients_are_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg(MODEL__META_ARCHITECTURE="TransferableMaskFormer", MODEL__DEVICE="cuda")).train()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = torch.stack(list(model(make_records()).values())).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_labels_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).eval()
    with torch.inference_mode():
        on_cpu = [result["sem_seg"].argmax(0) for result in model(make_records())]
        on_gpu = [result["sem_seg"].argmax(0).cpu() for result in model.cuda()(make_records())]
    for labels, reference in zip(on_gpu, on_cpu):
        assert float((labels == reference).float().mean()) > 0.99
