"""Batch normalization folded into convolutions, for inference.

With fixed statistics batch normalization is a scale and a shift of every channel. The convolution before it can do both
with other weights, and a pass over the activations is saved (``docs/speed.md``).
"""

from __future__ import annotations

import copy
import logging
from itertools import pairwise
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger(__name__)

PROBE_SIZE = (96, 160)
MAX_DIFFERENCE = 1e-3  # of features, relative to their largest value
BatchNorm = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return the model in whose backbones batch normalization is folded into convolutions, for inference only.

    ``model`` stays as it is; the result shares everything with it but these backbones, which are copied.
    """
    if isinstance(model, Backbone):
        return _folded(model)
    children = dict(model.named_children())
    folded = {name: fold_batch_norm(child) for name, child in children.items()}
    if all(folded[name] is children[name] for name in children):
        return model
    model = copy.copy(model)
    model._modules = {**model._modules, **folded}
    return model


@torch.no_grad()
def _folded(backbone: Backbone) -> Backbone:
    """Return a folded copy in evaluation mode, or ``backbone`` if there is nothing to fold.

    Convolutions of timm do not know what follows them. Their neighbor is taken for it, which a pass before and after
    must confirm, on the CPU, whose float32 is exact on every machine.
    """
    if not any(isinstance(part, BatchNorm) for part in backbone.modules()):
        return backbone
    device = next(backbone.parameters()).device
    folded = copy.deepcopy(backbone).cpu().eval()
    image = torch.randn(1, 3, *PROBE_SIZE, generator=torch.Generator().manual_seed(0))
    before = folded(image)
    for part in list(folded.modules()):
        if isinstance(part, Conv2d) and isinstance(part.norm, BatchNorm):  # Detectron2
            _fuse(part, part.norm)
            part.norm = None
        for (_, convolution), (name, norm) in pairwise(list(part.named_children())):  # timm
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNorm):
                _fuse(convolution, norm)
                setattr(part, name, getattr(norm, "act", nn.Identity()))  # timm's own has the activation in it
    after = folded(image)
    if all(_difference(after[name], before[name]) <= MAX_DIFFERENCE for name in before):
        return folded.to(device)
    logger.info("batch normalization is not folded: this backbone does not apply it right after convolutions")
    return backbone


def _fuse(convolution: nn.Conv2d, norm: Any) -> None:
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    convolution.weight, convolution.bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
