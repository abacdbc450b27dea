"""Seconds per image of the evaluator against Detectron2's ``SemSegEvaluator``, on the same scores.

    python -m benchmarks.evaluation [--rounds 5] [--height 1024] [--width 2048] [--device cpu] [--output eval.json]

In turns, on one core, medians; also checks that both report the same numbers, and the extra memory of
``labels_at_size`` at the size of the largest Mapillary image (on CUDA, where it can be read off).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator
from PIL import Image

from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.evaluation.semantic import SemanticEvaluator, labels_at_size
from tmt_d2.utils.files import write_json

SPLIT = "benchmark_evaluation"
LARGEST = (3936, 5248)


def make_case(folder: Path, height: int, width: int, device: str) -> tuple[dict[str, Any], torch.Tensor]:
    """A registered split of one blocky label file, and scores that are right on most of it."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.disable(logging.WARNING)
    with TemporaryDirectory() as folder:
        record, scores = make_case(Path(folder), args.height, args.width, args.device)
        theirs = SemSegEvaluator(SPLIT, distributed=False, sem_seg_loading_fn=read_numpy)
        evaluators: dict[str, DatasetEvaluator] = {"detectron2": theirs, "tmt_d2": SemanticEvaluator(SPLIT)}
        times: dict[str, list[float]] = {name: [] for name in evaluators}
        for evaluator in evaluators.values():
            evaluator.reset()
        for index in range(args.rounds + 1):
            for name, evaluator in evaluators.items():
                start = time.perf_counter()
                evaluator.process([record], [{"sem_seg": scores}])
                if args.device != "cpu":
                    torch.cuda.synchronize()
                if index:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
        results = {name: evaluator.evaluate()["sem_seg"] for name, evaluator in evaluators.items()}
    difference = max(abs(value - results["detectron2"][name]) for name, value in results["tmt_d2"].items())
    report: dict[str, Any] = {
        "size": [args.height, args.width],
        "device": args.device,
        **{f"{name}_seconds": statistics.median(values) for name, values in times.items()},
        "largest_difference_percent": difference,
    }
    report["ratio"] = report["detectron2_seconds"] / report["tmt_d2_seconds"]
    print(
        f"Detectron2 {report['detectron2_seconds']:.3f} s, tmt_d2 {report['tmt_d2_seconds']:.3f} s per image: ", end=""
    )
    print(f"{report['ratio']:.1f}x; largest difference of any metric {difference:.1e} points")
    if args.device != "cpu":
        small = torch.rand(19, 1024, 1365, device=args.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        labels_at_size(small, LARGEST)
        report["labels_at_size_peak_bytes"] = torch.cuda.max_memory_allocated() - before
        print(f"labels_at_size to {LARGEST}: {report['labels_at_size_peak_bytes'] / 2**20:.0f} MiB at most")
    if args.output:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
