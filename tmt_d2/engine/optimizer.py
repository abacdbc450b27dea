"""AdamW with Mask2Former's parameter groups, and its polynomial schedule."""

from __future__ import annotations

import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

from tmt_d2.errors import UserError
from tmt_d2.modeling.backbones.timm_backbone import timm_part

_LAYER_SCALE = re.compile(r"gamma_?\w*|res_scale\d*")  # the factor of a residual branch, in timm
_POSITIONS = ("relative_position_bias_table", "absolute_pos_embed", "pos_embed")
_TOKENS = ("cls_token", "reg_token", "dist_token")


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_embed: float,
    backbone_multiplier: float,
    layer_decay: float = 1.0,
    num_layers: int = 0,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    The learning rate of the backbone is multiplied by ``backbone_multiplier``, that of each of a Vision Transformer's
    ``num_layers`` blocks by ``layer_decay`` times the factor of the next one. Norms (with layer scale) and embeddings
    have their own weight decay, positions and tokens have none.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr = base_lr
            path = f"{module_name}.{name}".split(".")
            if "backbone" in path:
                within = "pos_embed" if name in _TOKENS else ".".join(path[path.index("backbone") + 1 :])
                lr *= backbone_multiplier * get_vit_lr_decay_rate(f"backbone.{within}", layer_decay, num_layers)
            decay = weight_decay
            if _is_norm(module) or _LAYER_SCALE.fullmatch(name):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            elif name in (*_POSITIONS, *_TOKENS):
                decay = 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def _is_norm(module: nn.Module) -> bool:
    """Compare names of classes: some norms of Detectron2 and timm share no base class with PyTorch's."""
    return any("norm" in kind.__name__.lower() for kind in type(module).__mro__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    timm = timm_part(model)
    num_layers = timm[1].blocks if timm else 0
    if solver.LAYER_DECAY != 1 and not num_layers:
        raise UserError("only for Vision Transformers of timm", key="SOLVER.LAYER_DECAY", value=solver.LAYER_DECAY)
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        layer_decay=solver.LAYER_DECAY,
        num_layers=num_layers,
    )
    if not groups:
        raise UserError("nothing to train: every parameter of the model is frozen")
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM)
    return torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=True)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Return the schedule (1 - iteration / MAX_ITER) ** POLY_LR_POWER after a warm-up, or one of Detectron2."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_detectron2_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
