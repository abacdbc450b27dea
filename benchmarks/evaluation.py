"""Seconds per image of the evaluator and of Detectron2's ``SemSegEvaluator`` on the same scores.

    python -m benchmarks.evaluation [--rounds 5] [--size 1024x2048] [--device cpu] [--output eval.json]

In turns, on one core, medians; both must report the same metrics.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator
from PIL import Image

from benchmarks.common import benchmark_parser, in_turns, report, size
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.evaluation.semantic import SemanticEvaluator

SPLIT = "benchmark_evaluation"


def make_case(folder: Path, height: int, width: int, device: str) -> tuple[dict[str, Any], torch.Tensor]:
    """A registered split of one label file of blocks, and scores that are right on most of it."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20, (height // 32, width // 32)).astype(np.uint8)
    ids[ids == 19] = 255
    label = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST)
    path = str(folder / "label.png")
    Image.fromarray(label).save(path)
    record = {"file_name": "image.png", "sem_seg_file_name": path, "image_id": "0", "dataset": SPLIT}
    register_split(SPLIT, lambda: [record], TRAIN_IDS)
    coarse = torch.from_numpy(ids[None] == np.arange(19)[:, None, None]).float() + torch.rand(19, *ids.shape)
    scores = torch.nn.functional.interpolate(coarse[None].to(device), (height, width), mode="bilinear")[0]
    return record, scores


def read_numpy(path: str, dtype: Any = None) -> np.ndarray:
    return np.array(Image.open(path), dtype=dtype)  # Detectron2's own reader fails with NumPy 2


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=5)
    parser.add_argument("--size", type=size, default=(1024, 2048), metavar="HxW")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.disable(logging.WARNING)
    with TemporaryDirectory() as folder:
        record, scores = make_case(Path(folder), *args.size, args.device)
        theirs = SemSegEvaluator(SPLIT, distributed=False, sem_seg_loading_fn=read_numpy)
        evaluators: dict[str, DatasetEvaluator] = {"detectron2": theirs, "tmt_d2": SemanticEvaluator(SPLIT)}
        for evaluator in evaluators.values():
            evaluator.reset()
        functions = {
            name: lambda evaluator=evaluator: evaluator.process([record], [{"sem_seg": scores}])
            for name, evaluator in evaluators.items()
        }
        times = in_turns(functions, args.rounds, args.device)
        results = {name: evaluator.evaluate()["sem_seg"] for name, evaluator in evaluators.items()}
    difference = max(abs(value - results["detectron2"][name]) for name, value in results["tmt_d2"].items())
    rows = [{"evaluator": name, "s": value, "ratio": value / times["detectron2"]} for name, value in times.items()]
    report(args, rows, size=args.size, largest_difference_percent=difference)
    print(f"largest difference of any metric: {difference:.1e} points")


if __name__ == "__main__":
    main()
