"""Whether a model is being turned into a graph, which changes what is best done."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """True within torch.compile, torch.export and the ONNX exporter: plain operators are wanted, nothing remembered."""
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
