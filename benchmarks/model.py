"""Whole inference and whole training steps: plain Mask2Former and TMT against Hugging Face's Mask2Former.

    python -m benchmarks.model [--device cpu] [--rounds 3] [--sizes 256x512 512x1024] [--output model.json]
    python -m benchmarks.model --each-setting --sizes 256x512 --step-sizes     # threads and ATEN_CPU_CAPABILITY
    python -m benchmarks.model --roofline 67 989 4.8    # of an H200: TFLOP/s in float32 and bfloat16, TB/s

ResNet-50, 100 queries, 19 classes, random weights, the same input, in turns; medians and ratios. "network" ends at
class and mask logits; "labels" at a label map of the image's size; a "step" is forward, losses, backward and AdamW.
Ours are as ``Predictor`` and the commands run them: batch normalization is folded, freed memory is reused. "hf" gives
freed memory back to the system, as glibc does by itself; "hf, reuse" reuses it. "tmt, T" has MODEL.TMT.TEST_ATTENTION.
On a GPU all run in mixed precision; on a CPU with bfloat16 "bf16" is the plain model in mixed precision. Efficiency is
FLOPs / (time x rate of a large matrix product). Peak memory of a step is measured in a process of its own.

The roofline is the time that a GPU of these rates cannot beat: the sum over all operators of the larger of FLOPs by
rate and bytes by bandwidth; in bfloat16 with half of the bytes. Without sampling of deformable attention, which
``benchmarks.parts`` has. The pixel decoder runs in float32 on GPUs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from benchmarks.common import (
    Function,
    Operation,
    add_clock,
    benchmark_parser,
    flops,
    in_turns,
    operations,
    peak_flops,
    report,
    size,
    with_memory_given_back,
)
from tmt_d2 import setup_cfg
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.modeling.folding import fold_batch_norm
from tmt_d2.modeling.mask_former import Pass
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.modeling.precision import cpu_has_bfloat16, mixed_precision
from tmt_d2.modeling.targets import semantic_targets
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils.memory import reuse_freed_memory

CONFIG = Path(__file__).parents[1] / "configs" / "models" / "R50.yaml"
MODELS = ("plain", "tmt", "hf")


def build(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "hf":
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

        backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        config = Mask2FormerConfig(backbone_config=backbone, num_labels=19)
        return Mask2FormerForUniversalSegmentation(config).to(device)
    architecture = "MaskFormer" if name == "plain" else "TransferableMaskFormer"
    opts = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.META_ARCHITECTURE", architecture]
    return build_model(setup_cfg(str(CONFIG), [*opts, "MODEL.TMT.TEST_ATTENTION", str(name == "tmt, T")]))


def autocast(device: str, bf16: bool = False) -> Any:
    return mixed_precision(device, torch.bfloat16 if bf16 or device != "cpu" else None)


def variants(make: Callable[..., Function], models: dict[str, nn.Module], *args: Any) -> dict[str, Function]:
    """``make(model, *args)`` of every model, and of Hugging Face's with freed memory reused.

    On a CPU with bfloat16 also of the plain one in mixed precision.
    """
    functions = {name: make(model, *args) for name, model in models.items()}
    functions["hf, reuse"] = functions["hf"]
    functions["hf"] = with_memory_given_back(functions["hf"])
    if next(models["plain"].parameters()).device.type == "cpu" and cpu_has_bfloat16():
        functions["bf16"] = make(models["plain"], *args, bf16=True)
    return functions


def inference(model: nn.Module, image: Tensor, to_labels: bool, bf16: bool = False) -> Function:
    """Return a function that runs the model on ``image`` (3, H, W) uint8."""
    model = fold_batch_norm(model.eval())
    device = str(image.device.type)

    def ours() -> Tensor:
        with torch.inference_mode(), autocast(device, bf16):
            if to_labels:
                return labels_at_size(model([{"image": image}])[0]["sem_seg"], (image.shape[1], image.shape[2]))
            passed = model.run(model.preprocess([{"image": image}]))
            return passed.outputs["pred_masks"].dense()

    def theirs() -> Tensor:
        with torch.inference_mode(), autocast(device):
            outputs = model(pixel_values=image[None] / 255.0 - 0.5)
            if not to_labels:
                return outputs.masks_queries_logits
            return processor.post_process_semantic_segmentation(outputs, [tuple(image.shape[-2:])])[0]

    if not hasattr(model, "config"):
        return ours
    from transformers import Mask2FormerImageProcessor

    processor = Mask2FormerImageProcessor()
    return theirs


def training_step(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool = False) -> Function:
    """images (B, 3, H, W) uint8, labels (B, H, W) train ids -> a function that makes one optimizer step."""
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
        if isinstance(model, TransferableMaskFormer):  # the mapper reads T in training
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
    """MiB by which the second step (with the optimizer's state) rises above the memory at rest."""
    step = training_step(build(name, device), *scene(batch, height, width, device))
    step()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    at_rest = _memory("VmRSS")
    step()
    return _memory("VmHWM") - at_rest


def _memory(field: str) -> float:
    """MiB of this process, by the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def memory_in_own_process(name: str, args: argparse.Namespace, height: int, width: int) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.model", "--memory-of", name, "--device", args.device]
    command += ["--sizes", f"{height}x{width}", "--batch", str(args.batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def compare(
    kind: str, edges: tuple[int, int], functions: dict[str, Function], args: argparse.Namespace
) -> dict[str, Any]:
    times = in_turns(functions, args.rounds, args.device, args.clock)
    row = row_of(kind, edges, times)
    for name in MODELS:
        row[f"{name} efficiency"] = flops(functions[name]) / (times[name] * args.peak)
    for a, b in (("plain", "hf, reuse"), ("tmt, T", "plain"), ("bf16", "plain")):
        if a in times:
            row[f"{a} / {b}"] = times[a] / times[b]
    return row


def row_of(kind: str, edges: tuple[int, int], values: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "size": "{}x{}".format(*edges)} | {name: values[name] for name in MODELS}
    for a, b in (("plain", "hf"), ("tmt", "hf"), ("tmt", "plain")):
        row[f"{a} / {b}"] = values[a] / values[b]
    return row


def each_setting(arguments: Sequence[str]) -> None:
    """Run this benchmark in processes of one and of two threads, with each instruction set of the processor."""
    has = torch.cpu.get_capabilities()
    capabilities = [name for name, key in (("avx2", "avx2"), ("avx512", "avx512_f")) if has.get(key)]
    for threads, capability in itertools.product(("1", "2"), ("default", *capabilities)):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "ATEN_CPU_CAPABILITY": capability}
        subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.model", *arguments], env=env, check=True)


def stages(image: Tensor) -> Iterator[tuple[str, list[Operation]]]:
    """Operator calls of each stage of inference on ``image`` (3, H, W) uint8."""
    model, records = fold_batch_norm(build("plain", "cpu").eval()), [{"image": image}]
    images = model.preprocess(records)
    steps: dict[str, Callable[[Any], Any]] = {
        "backbone": model.backbone,
        "pixel decoder": model.sem_seg_head.pixel_decoder,
        "decoder": lambda maps: model.sem_seg_head.predictor(maps.levels, maps.mask_features),
        "scores": lambda outputs: model.postprocess(Pass(None, outputs), records, images),
    }
    results = [images.tensor]
    for name, step in steps.items():
        with torch.no_grad():
            calls = operations(lambda step=step: results.append(step(results[-1])))
        yield name, calls


def roofline_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    float32, bfloat16, bandwidth = (1e12 * rate for rate in args.roofline)

    def row(kind: str, edges: tuple[int, int], calls: list[Operation]) -> dict[str, Any]:
        flop, moved = (sum(each) for each in zip(*calls))
        return {
            "kind": kind,
            "size": "{}x{}".format(*edges),
            "GFLOP": flop / 1e9,
            "GB": moved / 1e9,
            "float32, ms": 1e3 * sum(max(call.flops / float32, call.bytes / bandwidth) for call in calls),
            "bfloat16, ms": 1e3 * sum(max(call.flops / bfloat16, call.bytes / 2 / bandwidth) for call in calls),
        }

    for edges in args.sizes:
        image = scene(1, *edges, "cpu")[0][0]
        for kind, calls in stages(image):
            yield row(kind, edges, calls)
        tmt = fold_batch_norm(build("tmt, T", "cpu").eval())
        with torch.no_grad():
            calls = operations(lambda tmt=tmt, image=image: tmt([{"image": image}]))
        yield row("tmt with T as a whole", edges, calls)
    for edges in args.step_sizes:
        step = training_step(build("plain", "cpu"), *scene(args.batch, *edges, "cpu"))
        yield row(f"step of {args.batch}, plain", edges, operations(step))


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--sizes", nargs="*", type=size, default=[(256, 512), (512, 1024)], metavar="HxW")
    parser.add_argument("--step-sizes", nargs="*", type=size, default=[(256, 512)], metavar="HxW")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    add_clock(parser)
    parser.add_argument("--each-setting", action="store_true", help="1 and 2 threads, each ATEN_CPU_CAPABILITY")
    parser.add_argument("--roofline", nargs=3, type=float, metavar="RATE", help="count instead of measuring, see above")
    parser.add_argument("--memory-of", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(step_memory(args.memory_of, args.device, args.batch, *args.sizes[0]))
        return
    if args.each_setting:
        each_setting([argument for argument in sys.argv[1:] if argument != "--each-setting"])
        return
    if args.roofline:
        report(args, list(roofline_rows(args)), roofline=args.roofline)
        return
    reuse_freed_memory()
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    args.peak = peak_flops(args.device, dtype, args.clock)
    rows = []
    models = {name: build(name, args.device) for name in (*MODELS, "tmt, T")}
    for edges in args.sizes:
        image = scene(1, *edges, args.device)[0][0]
        for kind in ("network", "labels"):
            rows.append(compare(f"{kind}, s", edges, variants(inference, models, image, kind == "labels"), args))
    for edges in args.step_sizes:
        trained = {name: models[name] for name in MODELS}
        functions = variants(training_step, trained, *scene(args.batch, *edges, args.device))
        rows.append(compare(f"step of {args.batch}, s", edges, functions, args))
        memory = {name: memory_in_own_process(name, args, *edges) for name in MODELS}
        rows.append(row_of("step, peak MiB", edges, memory))
    print(f"a matrix product: {args.peak / 1e9:.0f} GFLOP/s")
    report(args, rows, peak_flops=args.peak)


if __name__ == "__main__":
    main()
