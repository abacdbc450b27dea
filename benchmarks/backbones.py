"""Parameters, FLOPs, inference and training step of timm backbones under the official head (100 queries, 19 classes).

    python -m benchmarks.backbones [--names convnext_tiny swin_tiny_patch4_window7_224] [--size 256x512] [--rounds 3]

FLOPs are those of one inference (convolutions and matrix products; a multiplication and an addition are two). Times are
medians, in turns with Hugging Face's Mask2Former on the same timm model in one process; random weights. Freed memory is
reused as in ``benchmarks.model``.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from benchmarks.common import benchmark_parser, flops, in_turns, report, size, with_memory_given_back
from benchmarks.model import CONFIG, inference, scene, training_step
from tmt_d2 import setup_cfg
from tmt_d2.modeling.backbones.timm_backbone import TimmBackbone
from tmt_d2.utils.memory import reuse_freed_memory

NAMES = (
    "tf_efficientnet_lite0",
    "mobilenetv4_conv_small",
    "resnet50",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b1",
    "vit_small_patch14_dinov2",
)


def build_ours(name: str, device: str) -> nn.Module:
    opts = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.BACKBONE.NAME", "timm", "MODEL.TIMM.NAME", name]
    torch.manual_seed(0)
    return build_model(setup_cfg(str(CONFIG), opts))


def build_theirs(name: str, model: nn.Module, image: Tensor) -> nn.Module | None:
    """Hugging Face's Mask2Former on the same timm model; None if it does not support it at this size."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, TimmBackboneConfig

    if not isinstance(model.backbone, TimmBackbone):
        return None
    indices = list(model.backbone.net.feature_info.out_indices)
    backbone = TimmBackboneConfig(backbone=name, out_indices=indices, use_pretrained_backbone=False)
    try:
        config = Mask2FormerConfig(backbone_config=backbone, num_labels=19)
        other = Mask2FormerForUniversalSegmentation(config).to(image.device)
        inference(other, image, to_labels=False)()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        print(f"{name}: not supported by Hugging Face: {' '.join(str(error).split())[:150]}")
        return None
    return other


def measure(name: str, height: int, width: int, rounds: int, device: str) -> dict[str, Any]:
    model = build_ours(name, device)
    images, labels = scene(2, height, width, device)
    model.eval()
    padded = model.preprocess([{"image": images[0]}]).tensor
    with torch.no_grad():
        operations = [flops(lambda: model.backbone(padded)), flops(lambda: model([{"image": images[0]}]))]
    parameters = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.backbone, model)]
    row: dict[str, Any] = {
        "backbone": name,
        "M parameters": parameters[0],
        "M whole": parameters[1],
        "GFLOP": operations[0] / 1e9,
        "GFLOP whole": operations[1] / 1e9,
    }
    models = {"ours": model}
    if (other := build_theirs(name, model, images[0])) is not None:
        models["hf"] = other
    for kind in ("inference", "step"):
        if kind == "inference":
            functions = {key: inference(each, images[0], to_labels=False) for key, each in models.items()}
        else:
            functions = {key: training_step(each, images, labels) for key, each in models.items()}
        if "hf" in functions:
            functions["hf"] = with_memory_given_back(functions["hf"])
        times = in_turns(functions, rounds, device)
        row[f"{kind} s"] = times["ours"]
        row[f"{kind} / hf"] = times["ours"] / times["hf"] if "hf" in times else None
    return row


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--size", type=size, default=(256, 512), metavar="HxW")
    args = parser.parse_args()
    reuse_freed_memory()
    report(args, [measure(name, *args.size, args.rounds, args.device) for name in args.names], size=args.size)


if __name__ == "__main__":
    main()
