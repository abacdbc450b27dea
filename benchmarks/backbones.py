"""What a backbone costs: parameters, FLOPs, inference and training step, ours and Hugging Face's with the same one.

    python -m benchmarks.backbones [--names convnext_tiny swin_tiny_patch4_window7_224] [--size 256x512] [--rounds 3]

Names of timm, each under the official head (100 queries, 19 classes) with random weights. FLOPs are those that PyTorch
counts in one inference (convolutions and matrix products; a multiplication and an addition are two) of the backbone
and of the whole. Times are medians in turns with Hugging Face's Mask2Former on the same timm model, in one process.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import in_turns, machine, print_table
from benchmarks.model import CONFIG, inference, scene, training_step
from tmt_d2 import setup_cfg
from tmt_d2.modeling.backbones.timm_backbone import TimmBackbone
from tmt_d2.utils.files import write_json

NAMES = (
    "tf_efficientnet_lite0",
    "mobilenetv4_conv_small",
    "resnet50",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b1",
    "vit_small_patch14_dinov2",
)


def ours(name: str, device: str) -> nn.Module:
    opts = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.BACKBONE.NAME", "timm", "MODEL.TIMM.NAME", name]
    torch.manual_seed(0)
    return build_model(setup_cfg(str(CONFIG), opts))


def theirs(name: str, model: nn.Module, image: Tensor) -> nn.Module | None:
    """Hugging Face's Mask2Former on the same timm model; None where it has none, or not at this size."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, TimmBackboneConfig

    if not isinstance(model.backbone, TimmBackbone):
        return None
    backbone = TimmBackboneConfig(
        backbone=name, out_indices=list(model.backbone.net.feature_info.out_indices), use_pretrained_backbone=False
    )
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=19)
    try:
        other = Mask2FormerForUniversalSegmentation(config).to(image.device)
        inference(other, image, to_labels=False)()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        print(f"{name}: not by Hugging Face's: {' '.join(str(error).split())[:150]}")
        return None
    return other


def gigaflops(function: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() / 1e9


def measure(name: str, height: int, width: int, rounds: int, device: str) -> dict[str, Any]:
    model = ours(name, device)
    images, labels = scene(2, height, width, device)
    model.eval()
    parameters = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.backbone, model)]
    padded = model.preprocess([{"image": images[0]}]).tensor
    model.requires_grad_(False)  # the counter follows gradients otherwise
    flops = [gigaflops(lambda: model.backbone(padded)), gigaflops(lambda: model([{"image": images[0]}]))]
    models = {"ours": model.requires_grad_(True)}
    other = theirs(name, model, images[0])
    if other is not None:
        models["hf"] = other
    row: dict[str, Any] = {
        "backbone": name,
        "M parameters": parameters[0],
        "M whole": parameters[1],
        "GFLOP": flops[0],
        "GFLOP whole": flops[1],
    }
    for what in ("inference", "step"):
        if what == "inference":
            functions = {key: inference(each, images[0], to_labels=False) for key, each in models.items()}
        else:
            functions = {key: training_step(each, images, labels) for key, each in models.items()}
        times = in_turns(functions, rounds, device)
        row[f"{what} s"] = times["ours"]["median"]
        row[f"{what} / hf"] = times["ours"]["median"] / times["hf"]["median"] if "hf" in times else None
    return row


def size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--size", type=size, default=(256, 512), help="height x width of the image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    rows = [measure(name, *args.size, args.rounds, args.device) for name in args.names]
    print_table(rows)
    if args.output:
        write_json(args.output, {"machine": machine(args.device), "size": args.size, "rows": rows})


if __name__ == "__main__":
    main()
