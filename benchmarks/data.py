"""Time of the training mapper, and of resizing whole images as Detectron2's augmentations do.

    python -m benchmarks.data [--rounds 15] [--output data.json]

Both read the same files, draw from the same distribution of crops, and run on one core, in turns; medians of processor
time. "decode" is reading image and label as a whole.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image
from torch.nn import functional as F

from benchmarks.common import benchmark_parser, in_turns, report
from tmt_d2.data import reader
from tmt_d2.data.datasets.mapillary import MAPILLARY_A
from tmt_d2.data.mapper import SemanticMapper

CROP = (512, 1024)
MIN_SIZES = tuple(int(0.1 * x * 1024) for x in range(5, 21))  # of Mask2Former's Cityscapes configs
MAX_SIZE = 4096
MAX_AREA = 0.75
CASES = ((1052, 1914, ".png"), (1052, 1914, ".jpg"), (3000, 4000, ".jpg"))


def make_pair(folder: Path, height: int, width: int, suffix: str) -> dict[str, str]:
    """An image whose PNG has about as many bytes per pixel as a frame of GTAV, and a palette label."""
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


def main() -> None:
    args = benchmark_parser(__doc__, rounds=15).parse_args()
    whole, mapper = ResizeThenCrop(), crop_then_resize()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    with TemporaryDirectory() as folder:
        for height, width, suffix in CASES:
            record = make_pair(Path(folder), height, width, suffix)
            functions = {
                "resize, crop ms": partial(whole, record),
                "mapper ms": partial(mapper, record),
                "decode ms": partial(reader.read_pair, record, MAPILLARY_A),
            }
            times = in_turns(functions, args.rounds, clock=time.process_time)
            row: dict[str, Any] = {"image": f"{suffix} {width}x{height}"} | {key: 1e3 * s for key, s in times.items()}
            rows.append(row | {"ratio": times["resize, crop ms"] / times["mapper ms"]})
    report(args, rows)


if __name__ == "__main__":
    main()
