"""Export of a trained model at a fixed image size to ONNX or torch.export, compared with the model.

The exported function: ``image`` (1, 3, H, W) float32, values 0 to 255 in the channel order of INPUT.FORMAT ->

    labels           (1, H, W) int64, class index of each pixel
    scores           (1, K, H, W), not normalized over the classes
    class_logits     (1, Q, K + 1), mask_logits (1, Q, h, w): outputs of the decoder for its Q queries
    transferability  (1, L, H, W) in [0, 1], coarsest level first; only of models that output it

The file describes its input and its labels in JSON: ``input`` and ``classes`` in the metadata of ONNX, the extra files
``input.json`` and ``classes.json`` of torch.export. ``input`` is {"name": "image", "layout": "NCHW", "channels": "RGB"
or "BGR", "range": [0, 255], "dtype": "float32", "size": [H, W]}, ``classes`` is {"names": [...], "colors":
[[r, g, b], ...]}.

The file resizes nothing: it equals ``Predictor`` for images that are already resized as the config resizes them.
Normalization and padding are part of the file, and where T acts in inference, adaptive clustering and transferable
masked attention. It is written only if it agrees with the model on five images: the median of their largest logit
differences is at most 1e-3, and at least 99.9 % of the labels are equal. Single images may differ more: masked
attention tests whether a logit is above 0, so a rounding error may change what a query attends to.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from tmt_d2.data.datasets.label_spaces import class_list_of
from tmt_d2.data.reader import ChannelOrder
from tmt_d2.engine.checkpoint.classes import CLASSES, encode_classes
from tmt_d2.errors import UserError
from tmt_d2.inference.choices import FORMATS
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.ops.resize import resize_level
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.utils.files import atomic_write

logger = logging.getLogger(__name__)

OPSET = 18  # GridSample came with 16, LayerNormalization with 17
MAX_LOGIT_DIFFERENCE = 1e-3
MIN_EQUAL_LABELS = 0.999
LOGITS = ("class_logits", "mask_logits")
IMAGES = 5

Outputs = Mapping[str, Tensor]


class FixedSizeModel(nn.Module):
    """A model as a function of one tensor.

    Attributes:
        names: names of the outputs, in order.
        classes: names and colors of the classes, as JSON.
    """

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.names = ["labels", "scores", "class_logits", "mask_logits"]
        self.classes = json.dumps(encode_classes(class_list_of(model)))
        if getattr(model, "output_transferability", False):
            self.names.append("transferability")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, H, W) float32 in 0 ... 255 -> the outputs, see the top of this file."""
        model = self.model
        height, width = image.shape[-2:]
        step = max(model.size_divisibility, 1)
        normalized = (image - model.get_buffer("pixel_mean")) / model.get_buffer("pixel_std")
        images = ImageList(F.pad(normalized, (0, -width % step, 0, -height % step)), [(height, width)])
        forward = model.run(images)
        (result,) = model.postprocess(forward, [{}], images)
        scores = result["sem_seg"][None]
        outputs = [scores.argmax(1), scores, forward.outputs["pred_logits"], forward.outputs["pred_masks"].dense()]
        if "transferability" in result:
            size, levels = (height, width), zip(result["transferability"], STRIDES)
            maps = [resize_level(level[None], stride, size, size) for level, stride in levels]
            outputs.append(torch.cat(maps)[None])
        return tuple(outputs)


class Agreement(NamedTuple):
    """Agreement of a file with the model, over ``IMAGES`` images.

    Attributes:
        logits, worst: median and maximum over the images of the largest difference of class and mask logits.
        labels: share of equal labels.
        model_seconds, file_seconds: median latency.
    """

    logits: float
    worst: float
    labels: float
    model_seconds: float
    file_seconds: float


def export_model(
    model: MaskFormer, size: tuple[int, int], path: str | Path, file_format: str, *, channels: ChannelOrder
) -> Agreement:
    """Write ``model`` at ``size`` (H, W) to ``path``, on the CPU, if the file agrees with it.

    Args:
        file_format: "onnx" or "pt2" (``torch.export.load`` reads it).
        channels: channel order that the model reads, INPUT.FORMAT.

    Raises:
        UserError: an unknown format, an impossible size, or a file that does not agree with the model.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    path = Path(path)
    if file_format not in FORMATS:
        raise UserError(f"choose one of {', '.join(FORMATS)}", key="--format", value=file_format)
    if min(size) < 1:
        raise UserError("must be positive", key="--size", value=f"{size[0]}x{size[1]}")
    fixed = FixedSizeModel(model.cpu())
    image = sample_image(size, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {CLASSES: fixed.classes, "input": _describe_input(size, channels)}
    start = time.perf_counter()

    def log_phase(phase: str, *values: object) -> None:
        logger.info(f"{phase} (%.0f s so far)", *values, time.perf_counter() - start)

    with torch.no_grad():
        log_phase("tracing the model at %dx%d", *size)
        program = torch.export.export(fixed, (image,))
        # Both writers need a name: this one is temporary until the file has been compared.
        with atomic_write(path) as file:
            temporary = Path(file.name)
            if file_format == "onnx":
                log_phase("translating to ONNX")
                onnx_program = _translate(program, image, fixed.names)
                log_phase("optimizing, the longest phase: minutes for a large model")
                onnx_program.optimize()
                onnx_program.model.metadata_props.update(about)
                log_phase("writing %s", path)
                onnx_program.save(temporary, external_data=False)
                run = _onnx_runner(temporary)
            else:
                log_phase("writing %s", path)
                torch.export.save(program, file, extra_files={f"{name}.json": text for name, text in about.items()})
                file.flush()
                run = _pt2_runner(temporary, fixed.names)
            log_phase("comparing the file with the model on %d images", IMAGES)
            agreement = compare(fixed, run, size)
            if agreement.logits > MAX_LOGIT_DIFFERENCE or agreement.labels < MIN_EQUAL_LABELS:
                differences = f"logits by {agreement.logits:.2g}, labels by {1 - agreement.labels:.2%}"
                raise UserError(f"not written, it differs from the model: {differences}", key=path)
    return agreement


def sample_image(size: tuple[int, int], seed: int) -> Tensor:
    """(1, 3, H, W) float32 in 0 ... 255: smooth blobs of color with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    blobs = F.interpolate(torch.rand(1, 3, 6, 9, generator=generator), size, mode="bicubic", align_corners=False)
    noise = torch.rand(1, 3, *size, generator=generator)
    return (225 * blobs.clamp(0, 1) + 30 * noise).round()


def compare(fixed: FixedSizeModel, run: Callable[[Tensor], Outputs], size: tuple[int, int]) -> Agreement:
    """Compare ``run``, the exported function, with the model."""
    images = [sample_image(size, seed) for seed in range(IMAGES)]
    # One after the other: two runtimes that take turns disturb each other's threads.
    expected, model_seconds = _outputs("model", lambda image: dict(zip(fixed.names, fixed(image))), images)
    exported, file_seconds = _outputs("file", run, images)
    pairs = list(zip(expected, exported))
    logits = [max(float((a[name] - b[name]).abs().max()) for name in LOGITS) for a, b in pairs]
    labels = [float((a["labels"] == b["labels"]).double().mean()) for a, b in pairs]
    return Agreement(statistics.median(logits), max(logits), statistics.mean(labels), model_seconds, file_seconds)


def _outputs(name: str, function: Callable[[Tensor], Outputs], images: Sequence[Tensor]) -> tuple[list[Outputs], float]:
    """Return the outputs for each image, and the median time in seconds."""
    outputs, seconds = [], []
    for number, image in enumerate(images, 1):
        logger.info("comparing: the %s on image %d of %d", name, number, len(images))
        start = time.perf_counter()
        outputs.append(function(image))
        seconds.append(time.perf_counter() - start)
    return outputs, statistics.median(seconds)


def _translate(program: torch.export.ExportedProgram, image: Tensor, names: Sequence[str]) -> torch.onnx.ONNXProgram:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it logs each unchanged node
    onnx_program = torch.onnx.export(
        program,
        (image,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=names,
        optimize=False,  # done by the caller
        verbose=False,
    )
    assert onnx_program is not None  # the dynamo exporter always returns one
    return onnx_program


def _describe_input(size: tuple[int, int], channels: ChannelOrder) -> str:
    """Return the description of the input, as JSON."""
    return json.dumps(
        {
            "name": "image",
            "layout": "NCHW",
            "channels": channels,
            "range": [0, 255],
            "dtype": "float32",
            "size": list(size),
        }
    )


def _onnx_runner(path: Path) -> Callable[[Tensor], Outputs]:
    import onnxruntime  # optional: pip install "tmt_d2[export]"

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as PyTorch, so that latencies can be compared
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor) -> Outputs:
        arrays = session.run(None, {"image": image.numpy()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays)}

    return run


def _pt2_runner(path: Path, names: Sequence[str]) -> Callable[[Tensor], Outputs]:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda image: dict(zip(names, module(image)))
