"""Images per second of the training mapper against resizing whole images, as Detectron2's augmentations do.

    python -m benchmarks.data [--rounds 15] [--output data.json]

Both sides read the same files, draw from the same distribution of crops, and run on one core, in turns; the figures are
medians of processor time. "by OpenCV" is without kornia-rs, which reads PNG files where it is installed; what resizes
whole images is measured without it. ``decode`` is the time that reading image and label whole takes: a PNG cannot be
read in part, a JPEG can be at 1/2, 1/4, 1/8 of its size, which the mapper does where the crop is shrunk that much.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image
from torch.nn import functional as F
from torchvision.io import decode_image

from tmt_d2.data import mapper, reader
from tmt_d2.data.datasets.mapillary import MAPILLARY_A
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.png import decode_plain
from tmt_d2.utils.files import write_json

CROP = (512, 1024)
MIN_SIZES = tuple(int(0.1 * x * 1024) for x in range(5, 21))  # of the Cityscapes configs of Mask2Former
MAX_SIZE = 4096
MAX_AREA = 0.75
CASES = {
    "PNG 1914x1052": (1052, 1914, ".png"),
    "JPEG 1914x1052": (1052, 1914, ".jpg"),
    "JPEG 4000x3000": (3000, 4000, ".jpg"),
}


def make_pair(folder: Path, height: int, width: int, suffix: str) -> dict[str, str]:
    """A textured picture whose PNG takes about as many bytes per pixel as a frame of GTAV, and a palette label."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 26, width // 27, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 1.0, (height, width, 3))
    ids = rng.integers(0, 66, (height // 40, width // 40), dtype=np.uint8)
    label = Image.fromarray(cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST))
    label.putpalette(bytes(range(256)) * 3)
    image_path, label_path = folder / f"image_{height}{suffix}", folder / f"label_{height}.png"
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(image_path, quality=92)
    label.save(label_path)
    return {"file_name": str(image_path), "sem_seg_file_name": str(label_path), "image_id": "0", "dataset": "street"}


class ResizeThenCrop:
    """Detectron2's augmentations on whole images, in the order of Mask2Former's semantic mapper."""

    def __init__(self) -> None:
        self.augmentations = T.AugmentationList(
            [
                T.ResizeShortestEdge(MIN_SIZES, MAX_SIZE, "choice"),
                T.RandomCrop_CategoryAreaConstraint("absolute", CROP, MAX_AREA, 255),
                ColorAugSSDTransform("RGB"),
                T.RandomFlip(),
            ]
        )

    def __call__(self, record: dict[str, str]) -> dict[str, Any]:
        image, label = reader.read_pair(record, MAPILLARY_A)
        inputs = T.AugInput(image, sem_seg=label)
        self.augmentations(inputs)
        pixels = torch.from_numpy(np.array(inputs.image.transpose(2, 0, 1), order="C"))
        sem_seg = torch.from_numpy(np.array(inputs.sem_seg, order="C"))
        pad = (0, CROP[1] - pixels.shape[2], 0, CROP[0] - pixels.shape[1])
        return {"image": F.pad(pixels, pad, value=128), "sem_seg": F.pad(sem_seg, pad, value=255)}


def crop_then_resize() -> SemanticMapper:
    return SemanticMapper(
        is_train=True,
        label_spaces={"street": MAPILLARY_A},
        min_sizes=MIN_SIZES,
        max_size=MAX_SIZE,
        crop_size=CROP,
        single_category_max_area=MAX_AREA,
        color_jitter=True,
        horizontal_flip=True,
    )


def in_turns(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each function; every round runs all of them, so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            np.random.seed(index)  # the same scale and crop on both sides
            start = time.process_time()
            function()
            if index:  # the first round warms up
                times[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def by_opencv(function: Callable[[], Any]) -> Callable[[], Any]:
    """The same, without kornia-rs."""

    def run() -> Any:
        with mock.patch.object(reader, "decode_plain", lambda *_: None):
            return function()

    return run


def measure(record: dict[str, str], rounds: int) -> dict[str, float]:
    whole, ours = ResizeThenCrop(), crop_then_resize()
    times = in_turns(
        {
            "resize_then_crop_ms": by_opencv(lambda: whole(record)),
            "mapper_ms": lambda: ours(record),
            "mapper_by_opencv_ms": by_opencv(lambda: ours(record)),
            "decode_ms": lambda: reader.read_pair(record, MAPILLARY_A),
            "decode_by_opencv_ms": by_opencv(lambda: reader.read_pair(record, MAPILLARY_A)),
        },
        rounds,
    )
    image, label = reader.read_pair(record, MAPILLARY_A)
    with (
        mock.patch.multiple(
            reader, read_pair=lambda *_: (image, label), read_image=lambda *_: image, read_label=lambda *_: label
        ),
        mock.patch.object(mapper, "_read_reduced", lambda *_: None),
    ):
        times |= in_turns(
            {"resize_then_crop_decoded_ms": lambda: whole(record), "mapper_decoded_ms": lambda: ours(record)}, rounds
        )
    times["ratio"] = times["resize_then_crop_ms"] / times["mapper_ms"]
    times["ratio_by_opencv"] = times["resize_then_crop_ms"] / times["mapper_by_opencv_ms"]
    times["ratio_decoded"] = times["resize_then_crop_decoded_ms"] / times["mapper_decoded_ms"]
    times["images_per_second"] = 1e3 / times["mapper_ms"]
    return times


def decoders(path: str, rounds: int) -> dict[str, float]:
    """Milliseconds of each library to decode one image from memory."""
    data = Path(path).read_bytes()
    encoded, tensor = np.frombuffer(data, np.uint8), torch.frombuffer(bytearray(data), dtype=torch.uint8)
    functions: dict[str, Callable[[], Any]] = {
        "OpenCV": lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR),
        "Pillow": lambda: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "torchvision": lambda: decode_image(tensor),
    }
    if path.endswith(".png"):
        functions["kornia-rs"] = lambda: decode_plain(data, "RGB")
    if path.endswith(".jpg"):
        functions["OpenCV at 1/2"] = lambda: cv2.imdecode(encoded, cv2.IMREAD_REDUCED_COLOR_2)
    return in_turns(functions, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    report: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for name, (height, width, suffix) in CASES.items():
            record = make_pair(Path(folder), height, width, suffix)
            size = Path(record["file_name"]).stat().st_size
            report[name] = {"bytes": size, **measure(record, args.rounds)}
            report[name]["decoders_ms"] = decoders(record["file_name"], args.rounds)
    print(f"{'':16}{'resize, crop':>14}{'mapper':>10}{'ratio':>8}{'decode':>10}{'without decoding':>24}")
    for name, row in report.items():
        print(
            f"{name:16}{row['resize_then_crop_ms']:11.1f} ms{row['mapper_ms']:7.1f} ms{row['ratio']:7.1f}x"
            f"{row['decode_ms']:7.1f} ms{row['resize_then_crop_decoded_ms']:8.1f} -> {row['mapper_decoded_ms']:.1f} ms"
            f" ({row['ratio_decoded']:.1f}x)"
        )
    for name, row in report.items():
        print(
            f"{name} by OpenCV: mapper {row['mapper_by_opencv_ms']:.1f} ms, {row['ratio_by_opencv']:.1f}x, "
            f"decode {row['decode_by_opencv_ms']:.1f} ms"
        )
        print(f"{name}: " + ", ".join(f"{library} {value:.1f} ms" for library, value in row["decoders_ms"].items()))
    if args.output:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
