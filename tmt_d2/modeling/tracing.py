"""Detection of graph capture."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Return True within torch.compile, torch.export and the ONNX exporter: no custom kernels and caches there."""
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
