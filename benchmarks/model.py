"""Whole inference and whole training steps: ours against Hugging Face's Mask2Former, and TMT against plain.

    python -m benchmarks.model [--device cpu] [--rounds 3] [--sizes 256x512 512x1024] [--output model.json]

ResNet-50, 100 queries, 19 classes, random weights and the same input for all, in turns, medians and ratios. "network"
ends at class and mask logits; "labels" goes on to a label map of the image's size, each by its own way; a "step" is
forward, losses, backward and AdamW. "bf16" is plain in mixed precision, on a CPU that is faster with it; on a GPU
everything is. "efficiency" is FLOPs / (time x the rate of a large matrix product here), which hardly depends on the
machine. Peak memory of a step is that of a process of its own (on a GPU: the allocator's peak). Needs
`pip install transformers`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from benchmarks.common import Function, flops, in_turns, machine, peak_flops, print_table
from tmt_d2 import setup_cfg
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.modeling.precision import cpu_has_bfloat16, mixed_precision
from tmt_d2.modeling.targets import semantic_targets
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils.files import write_json

CONFIG = Path(__file__).parents[1] / "configs" / "Base-Mask2Former-R50.yaml"
MODELS = ("plain", "tmt", "hf")


def build(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "hf":
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

        backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, num_labels=19)).to(
            device
        )
    architecture = {"plain": "MaskFormer", "tmt": "TransferableMaskFormer"}[name]
    opts = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.META_ARCHITECTURE", architecture]
    return build_model(setup_cfg(str(CONFIG), opts))


def autocast(device: str, bf16: bool = False) -> Any:
    return mixed_precision(device, torch.bfloat16 if bf16 or device != "cpu" else None)


def with_bf16(make: Callable[..., Function], models: dict[str, nn.Module], *args: Any) -> dict[str, Function]:
    """``make(model, *args)`` of every model; of the plain one also in mixed precision if that is another thing."""
    functions = {name: make(model, *args) for name, model in models.items()}
    if next(models["plain"].parameters()).device.type == "cpu" and cpu_has_bfloat16():
        functions["bf16"] = make(models["plain"], *args, bf16=True)
    return functions


def inference(model: nn.Module, image: Tensor, to_labels: bool, bf16: bool = False) -> Function:
    """A function that runs the model on ``image`` (3, H, W) uint8."""
    model.eval()
    device, size = str(image.device.type), tuple(image.shape[-2:])

    def ours() -> Tensor:
        with torch.inference_mode(), autocast(device, bf16):
            if to_labels:
                return model([{"image": image}])[0]["sem_seg"].argmax(0)
            passed = model.run(model.preprocess([{"image": image}]))
            return passed.outputs["pred_masks"].dense()

    def theirs() -> Tensor:
        with torch.inference_mode(), autocast(device):
            outputs = model(pixel_values=image[None] / 255.0 - 0.5)
            if not to_labels:
                return outputs.masks_queries_logits
            return PROCESSOR().post_process_semantic_segmentation(outputs, [size])[0]

    return theirs if hasattr(model, "config") else ours


def PROCESSOR() -> Any:
    from transformers import Mask2FormerImageProcessor

    return Mask2FormerImageProcessor()


def training_step(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool = False) -> Function:
    """images (B, 3, H, W) uint8, labels (B, H, W) train ids -> a function that makes one optimiser step."""
    model.train()
    device = str(images.device.type)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    forward: Callable[[], Tensor]
    if hasattr(model, "config"):
        targets = semantic_targets(labels)
        masks, classes = [t.masks.float() for t in targets], [t.labels for t in targets]

        def forward() -> Tensor:
            return model(pixel_values=images / 255.0 - 0.5, mask_labels=masks, class_labels=classes).loss.sum()
    else:
        records = [{"image": image, "sem_seg": label} for image, label in zip(images, labels)]
        if isinstance(model, TransferableMaskFormer):  # in training T is read, as the mapper gives it
            height, width = images.shape[-2:]
            for record in records:
                record["transferability"] = [torch.randn(height // s, width // s) for s in STRIDES]

        def forward() -> Tensor:
            return torch.stack(list(model(records).values())).sum()

    def step() -> None:
        with autocast(device, bf16):
            loss = forward()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def scene(batch: int, height: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Random images and blocky labels of 12 classes each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    blocks = torch.randint(0, 12, (batch, height // 64, width // 64), generator=generator)
    return images.to(device), blocks.repeat_interleave(64, 1).repeat_interleave(64, 2).to(device)


def step_memory(name: str, device: str, batch: int, height: int, width: int) -> float:
    """MiB by which one step (after a first, which makes the optimiser's state) rises above the memory at rest."""
    step = training_step(build(name, device), *scene(batch, height, width, device))
    if device != "cpu":
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    step()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is in use now
    at_rest = _memory("VmRSS")
    step()
    return _memory("VmHWM") - at_rest


def _memory(field: str) -> float:
    """MiB, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def memory_in_own_process(name: str, args: argparse.Namespace, size: str) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.model", "--memory-of", name, "--device", args.device]
    command += ["--sizes", size, "--batch", str(args.batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def compare(what: str, size: str, functions: dict[str, Function], args: argparse.Namespace) -> dict[str, Any]:
    times = in_turns(functions, args.rounds, args.device)
    row: dict[str, Any] = {"what": what, "size": size}
    row |= {f"{name} s": times[name]["median"] for name in MODELS}
    row |= {
        "plain / hf": times["plain"]["median"] / times["hf"]["median"],
        "tmt / hf": times["tmt"]["median"] / times["hf"]["median"],
        "tmt / plain": times["tmt"]["median"] / times["plain"]["median"],
    }
    for name in ("plain", "hf"):
        row[f"{name} efficiency"] = flops(functions[name]) / (times[name]["median"] * args.peak)
    if "bf16" in times:
        row |= {"bf16 s": times["bf16"]["median"], "bf16 / plain": times["bf16"]["median"] / times["plain"]["median"]}
    return row


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--sizes", nargs="*", default=["256x512", "512x1024"], metavar="HxW")
    arguments.add_argument("--step-sizes", nargs="*", default=["256x512"], metavar="HxW")
    arguments.add_argument("--batch", type=int, default=2, help="images of a training step")
    arguments.add_argument("--output", help="write the figures as JSON")
    arguments.add_argument("--memory-of", choices=MODELS, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.memory_of:
        height, width = map(int, args.sizes[0].split("x"))
        print(step_memory(args.memory_of, args.device, args.batch, height, width))
        return

    args.peak = peak_flops(args.device, torch.float32 if args.device == "cpu" else torch.bfloat16)
    rows = []
    models = {name: build(name, args.device) for name in MODELS}
    for size in args.sizes:
        height, width = map(int, size.split("x"))
        image = scene(1, height, width, args.device)[0][0]
        for what in ("network", "labels"):
            functions = with_bf16(inference, models, image, what == "labels")
            rows.append(compare(what, size, functions, args))
            print_table(rows[-1:])
    for size in args.step_sizes:
        height, width = map(int, size.split("x"))
        batch = scene(args.batch, height, width, args.device)
        functions = with_bf16(training_step, models, *batch)
        rows.append(compare(f"step of {args.batch}", size, functions, args))
        memory = {name: memory_in_own_process(name, args, size) for name in MODELS}
        rows.append(
            {"what": "step, peak MiB", "size": size}
            | {f"{name} s": value for name, value in memory.items()}
            | {"plain / hf": memory["plain"] / memory["hf"], "tmt / hf": memory["tmt"] / memory["hf"]}
            | {"tmt / plain": memory["tmt"] / memory["plain"]}
        )
    print_table(rows)
    if args.output:
        facts = machine(args.device) | {"peak_flops": args.peak}
        write_json(args.output, {"machine": facts, "rounds": args.rounds, "rows": rows})
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
