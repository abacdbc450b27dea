"""Seconds of each part of the model, its arithmetic, and the least time in which this machine can do it.

    python -m benchmarks.parts [--device cpu] [--rounds 5] [--sizes 512x1024] [--only linear] [--output parts.json]

Parts: deformable attention at encoder scale by every backend (forward, forward + backward, memory kept for the backward
pass), linear layers, batch normalization folded into convolutions, adaptive clustering, the transferability mask, and
matching and losses against Hugging Face's. "floor" is the larger of FLOPs over the rate of a matrix product and bytes
(each input and output once) over the rate of a copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor

from benchmarks.common import Function, add_clock, benchmark_parser, in_turns, peak_bandwidth, peak_flops, report, size
from benchmarks.model import CONFIG, build, scene
from tmt_d2 import setup_cfg
from tmt_d2.modeling import ms_deform_attn
from tmt_d2.modeling.folding import fold_batch_norm
from tmt_d2.modeling.ops.deformable_attention import _fastest_backend
from tmt_d2.modeling.ops.linear import linear
from tmt_d2.modeling.targets import semantic_targets
from tmt_d2.transferability import adaptive_clustering, transferability_mask
from tmt_d2.utils.memory import reuse_freed_memory

HEADS, CHANNELS, POINTS = 8, 32, 4
CELLS = {32: 2, 16: 4, 8: 8}


def deformable_inputs(height: int, width: int, device: str) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    shapes = [(height // stride, width // stride) for stride in CELLS]
    positions = sum(h * w for h, w in shapes)
    value = torch.randn(1, positions, HEADS, CHANNELS, device=device)
    reference = torch.rand(1, positions, 1, 1, 1, 2, device=device)
    locations = reference + 0.05 * torch.randn(1, positions, HEADS, 3, POINTS, 2, device=device)
    weights = torch.rand(1, positions, HEADS, 3 * POINTS, device=device).softmax(-1)
    return value, shapes, locations, weights.view(1, positions, HEADS, 3, POINTS)


def kept_for_backward(function: Function) -> int:
    """Bytes of the distinct tensors that autograd keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values())


def deformable_rows(height: int, width: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    value, shapes, locations, weights = deformable_inputs(height, width, args.device)
    backends = dict.fromkeys(["torch", _fastest_backend(value)])
    queries = value.shape[1]
    flops = 2 * 4 * queries * HEADS * 3 * POINTS * CHANNELS
    bytes_moved = 4 * (2 * value.numel() + locations.numel() + weights.numel())

    def forward(backend: str) -> Tensor:
        with torch.no_grad():
            return ms_deform_attn(value, shapes, locations, weights, backend)

    inputs = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]

    def both(backend: str) -> None:
        output = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2], backend)
        torch.autograd.grad(output.sum(), inputs)

    for kind, function, factor in (("forward", forward, 1), ("forward + backward", both, 3)):
        times = in_turns(
            {name: lambda n=name, f=function: f(n) for name in backends}, args.rounds, args.device, args.clock
        )
        for name in backends:
            kept = kept_for_backward(lambda n=name: ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2], n))
            yield {
                "part": f"deformable attention, {queries} queries, {kind}, {name}",
                "s": times[name],
                "ratio to torch": times[name] / times["torch"],
                "floor s": args.floor(factor * flops, factor * bytes_moved),
                "MiB kept": kept / 2**20,
            }


def linear_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The linear layers of an encoder layer at 512x1024 with their gradients, against ``F.linear``."""
    for channels, outputs in ((256, 256), (256, 1024), (1024, 256)):
        shapes = ((1, 10752, channels), (outputs, channels), (outputs,))
        inputs = [torch.randn(shape, device=args.device, requires_grad=True) for shape in shapes]

        def both(function: Callable[..., Tensor], inputs: list[Tensor] = inputs) -> None:
            torch.autograd.grad(function(*inputs).sum(), inputs)

        functions: dict[str, Function] = {"torch": lambda: both(F.linear), "ours": lambda: both(linear)}
        times = in_turns(functions, args.rounds, args.device, args.clock)
        for name, values in times.items():
            yield {
                "part": f"linear {channels} -> {outputs}, 10752 positions, forward + backward, {name}",
                "s": values,
                "ratio to torch": values / times["torch"],
                "floor s": args.floor(3 * 2 * 10752 * channels * outputs, 4 * sum(tensor.numel() for tensor in inputs)),
            }


def folding_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Inference with batch normalization in the convolutions, against the model as it is."""
    for name in ("R50", "lite0"):
        opts = ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""]
        model = build_model(setup_cfg(str(CONFIG.with_stem(name)), opts)).eval()
        for edges in ((256, 512), (512, 1024)):
            records = [{"image": scene(1, *edges, args.device)[0][0]}]

            def infer(model: Any, records: list[dict[str, Any]] = records) -> None:
                with torch.no_grad():
                    model(records)

            models = {"as it is": model, "folded": fold_batch_norm(model)}
            functions = {key: partial(infer, each) for key, each in models.items()}
            times = in_turns(functions, args.rounds, args.device, args.clock)
            for key, seconds in times.items():
                part = "{}, {}x{}, {}".format(name, *edges, key)
                yield {"part": part, "s": seconds, "ratio to as it is": seconds / times["as it is"]}


def transferability_rows(height: int, width: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for stride, cell in CELLS.items():
        h, w = height // stride, width // stride
        features = torch.randn(1, 256, h, w, device=args.device)
        with torch.no_grad():
            times = in_turns(
                {"": lambda f=features, c=cell: adaptive_clustering(f, c)}, args.rounds, args.device, args.clock
            )
        flops = 6 * 2 * (2 * 9 * h * w * 256)
        yield {
            "part": f"ACTE, {height}x{width}, stride {stride}, 6 iterations",
            "s": times[""],
            "floor s": args.floor(flops, 4 * 2 * features.numel()),
        }
    logits = torch.randn(1, height // 8, width // 8, device=args.device)
    times = in_turns({"": lambda: transferability_mask(logits, 0.3)}, args.rounds, args.device, args.clock)
    yield {
        "part": f"TMA mask, {height}x{width}, stride 8",
        "s": times[""],
        "floor s": args.floor(0, 5 * logits.numel()),
    }


def criterion_rows(height: int, width: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Matching and losses of two images with gradients; Hugging Face's work on the dense masks of all queries."""
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    model = build("plain", args.device).train()
    images, labels = scene(2, height, width, args.device)
    records = [{"image": image, "sem_seg": label} for image, label in zip(images, labels)]
    encoded = model.encode(model.preprocess(records))
    outputs = model.sem_seg_head.predictor(*encoded)
    layers = [*outputs["aux_outputs"], {key: outputs[key] for key in ("pred_logits", "pred_masks")}]
    leaves = [layer["pred_masks"].embeddings for layer in layers] + [layer["pred_logits"] for layer in layers]
    leaves.append(encoded.mask_features)
    targets = semantic_targets(labels)
    config = Mask2FormerConfig(num_labels=19)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    hf_loss = Mask2FormerLoss(config=config, weight_dict=weights).to(args.device)

    def ours() -> None:
        losses = model.criterion(outputs, targets)
        torch.autograd.grad(torch.stack(list(losses.values())).sum(), leaves, retain_graph=True)

    def theirs() -> None:
        dense = [
            {"masks_queries_logits": layer["pred_masks"].dense(), "class_queries_logits": layer["pred_logits"]}
            for layer in layers
        ]
        losses = hf_loss(
            **dense[-1],
            mask_labels=[target.masks.float() for target in targets],
            class_labels=[target.labels for target in targets],
            auxiliary_predictions=dense[:-1],
        )
        torch.autograd.grad(torch.stack(list(losses.values())).sum(), leaves, retain_graph=True)

    times = in_turns({"ours": ours, "hf": theirs}, args.rounds, args.device, args.clock)
    for name, values in times.items():
        yield {
            "part": f"matcher + criterion of 10 outputs, 2 x {height}x{width}, {name}",
            "s": values,
            "ratio to hf": values / times["hf"],
        }


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=5)
    sizes = [(256, 512), (512, 1024), (768, 1536), (1024, 2048)]
    parser.add_argument(
        "--sizes", nargs="+", type=size, default=sizes, metavar="HxW", help="image sizes of clustering and mask"
    )
    choices = ("deformable", "linear", "folding", "transferability", "criterion")
    add_clock(parser)
    parser.add_argument("--only", nargs="+", choices=choices, default=choices)
    args = parser.parse_args()
    torch.manual_seed(0)
    reuse_freed_memory()
    flops, bandwidth = peak_flops(args.device, clock=args.clock), peak_bandwidth(args.device)
    args.floor = lambda operations, moved: max(operations / flops, moved / bandwidth)
    rows: list[dict[str, Any]] = []
    if "deformable" in args.only:
        for edges in ((512, 1024), (1024, 2048)):
            rows += deformable_rows(*edges, args)
    if "linear" in args.only:
        rows += linear_rows(args)
    if "folding" in args.only:
        rows += folding_rows(args)
    if "transferability" in args.only:
        for edges in args.sizes:
            rows += transferability_rows(*edges, args)
    if "criterion" in args.only:
        for edges in ((256, 512), (512, 1024)):
            rows += criterion_rows(*edges, args)
    report(args, rows, peak_flops=flops, peak_bytes_per_s=bandwidth)


if __name__ == "__main__":
    main()
