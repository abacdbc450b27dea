"""mIoU, fwIoU, mACC and pACC from one confusion matrix that stays on the device of the predictions.

The numbers equal those of Detectron2's ``SemSegEvaluator``. Differences: labels are read through the data set's table
(no converted copies), nothing is run-length encoded, and K score maps of the image's size are never made here.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor, nn

from tmt_d2.data import reader
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.datasets.registration import label_space_of, labeled_records
from tmt_d2.errors import UserError
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.ops.resize import resize
from tmt_d2.utils.files import atomic_write, write_json

logger = logging.getLogger(__name__)

ESTIMATED = "estimated"  # mIoU, without labels; see ``tmt_d2.estimation``
METRICS = ("mIoU", "fwIoU", "mACC", "pACC")  # over all classes, in percent


def labels_at_size(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``resize(scores, size).argmax(0)``, computed plane by plane: two maps of ``size`` in memory instead of K.

    PyTorch may round one plane and K planes differently in the last bit, so ties may be resolved differently.

    Args:
        scores: (K, h, w) float, K <= 255.
        size: (H, W).

    Returns:
        (H, W) uint8; the first class in a tie.

    Raises:
        FloatingPointError: a score is NaN or infinite.
    """
    labels = torch.zeros(size, dtype=torch.uint8, device=scores.device)
    best = torch.full(size, -torch.inf, dtype=scores.dtype, device=scores.device)
    for index, plane in enumerate(scores):
        plane = resize(plane[None], size)[0]
        better = (plane > best).view(torch.uint8)
        torch.maximum(labels, better.mul_(index), out=labels)  # later classes have larger ids; far faster than filling
        torch.maximum(best, plane, out=best)
    if not torch.isfinite(best).all():
        raise FloatingPointError("the scores of the model are not finite: its weights hold NaN or infinity")
    return labels


def confusion_matrix(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int = IGNORE) -> Tensor:
    """Return (K, K) long counts, row = true class, column = predicted class, without pixels whose truth is ``ignore``.

    Args:
        prediction: (H, W) integer, each value in [0, K).
        truth: (H, W) integer, each value in [0, K) or ``ignore``; on the same device.
    """
    rows = torch.where(truth == ignore, num_classes, truth.int())
    index = rows * num_classes + prediction.int()
    counts = torch.bincount(index.flatten(), minlength=(num_classes + 1) * num_classes)
    return counts.view(-1, num_classes)[:num_classes]


def metrics(matrix: np.ndarray, classes: Sequence[str], subsets: Mapping[str, Iterable[int]] = {}) -> dict[str, float]:
    """Return percentages by the names of the paper's table, as Detectron2 defines them.

    A class counts in mIoU, fwIoU and mACC when it occurs in the ground truth, and is NaN otherwise. For each
    entry of ``subsets`` there is an ``mIoU-<name>`` over those of its classes that occur.

    Args:
        matrix: (K, K) counts, row = true class, column = predicted class.
    """
    hits = matrix.diagonal().astype(np.float64)
    true, predicted = matrix.sum(1).astype(np.float64), matrix.sum(0).astype(np.float64)
    occurs = true > 0
    nan = np.full(len(classes), np.nan)
    iou = np.divide(hits, true + predicted - hits, out=nan.copy(), where=occurs)
    accuracy = np.divide(hits, true, out=nan.copy(), where=occurs)
    total = true.sum()

    def mean(values: np.ndarray, members: np.ndarray) -> float:
        return float(values[members].mean()) if members.any() else float("nan")

    result = {
        "mIoU": mean(iou, occurs),
        "fwIoU": float((iou[occurs] * true[occurs]).sum() / total) if total else float("nan"),
        "mACC": mean(accuracy, occurs),
        "pACC": float(hits.sum() / total) if total else float("nan"),
    }
    for name, members in subsets.items():
        result[f"mIoU-{name}"] = mean(iou, occurs & np.isin(np.arange(len(classes)), list(members)))
    result |= {f"IoU-{name}": float(value) for name, value in zip(classes, iou)}
    result |= {f"ACC-{name}": float(value) for name, value in zip(classes, accuracy)}
    return {name: 100 * value for name, value in result.items()}


def metric_names(dataset_name: str) -> list[str]:
    """Return the keys of ``metrics`` for a registered split."""
    metadata = MetadataCatalog.get(dataset_name)
    size = len(metadata.stuff_classes)
    return list(metrics(np.zeros((size, size)), metadata.stuff_classes, metadata.get("class_subsets", {})))


def metrics_table(values: Mapping[str, float | None], classes: Sequence[str]) -> str:
    """Return IoU and accuracy of every class, in three columns of classes, and a line with the four means."""

    def shown(name: str) -> str:
        value = values.get(name)
        return "-" if value is None or math.isnan(value) else f"{value:.1f}"

    cells = [[name, shown(f"IoU-{name}"), shown(f"ACC-{name}")] for name in classes]
    rows = -(-len(cells) // 3)
    lines = [[text for index in range(row, len(cells), rows) for text in cells[index]] for row in range(rows)]
    table = tabulate(lines, headers=["class", "IoU", "ACC"] * min(3, len(cells)), disable_numparse=True)
    return f"{table}\n{', '.join(f'{name} {shown(name)}' for name in METRICS)}"


class SemanticEvaluator(DatasetEvaluator):
    """Compare predictions with the label files of a registered split.

    The output of a model for an image is ``sem_seg_labels`` (H, W) integer, or else ``sem_seg`` (K, H, W) scores, of
    the size of the label file.

    Attributes:
        absent_classes: after ``evaluate``, the classes that never occur in the ground truth.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: a registered split with labeled images; its metadata names the classes and the subsets.
            output_dir: where ``confusion_matrix.npz`` and ``sem_seg_evaluation.json`` go; None writes nothing.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.output_dir = output_dir
        self.classes = tuple(metadata.stuff_classes)
        self.subsets: Mapping[str, Iterable[int]] = getattr(metadata, "class_subsets", {})
        self.label_space = label_space_of(dataset_name)
        self.label_files = {r["file_name"]: r["sem_seg_file_name"] for r in labeled_records([dataset_name])}
        self.absent_classes: list[str] = []
        self.reset()

    def reset(self) -> None:
        self.matrix: Tensor | None = None

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        for item, output in zip(inputs, outputs):
            file_name = item["file_name"]
            if file_name not in self.label_files:
                raise UserError(
                    f"{file_name} is not an image of this split", key="DATASETS.TEST", value=self.dataset_name
                )
            truth = torch.from_numpy(reader.read_label(self.label_files[file_name], self.label_space))
            prediction = output.get("sem_seg_labels")
            if prediction is None:
                prediction = labels_at_size(output["sem_seg"], tuple(output["sem_seg"].shape[1:]))
            if prediction.shape != truth.shape:
                sizes = f"{tuple(truth.shape)}, the prediction {tuple(prediction.shape)}"
                raise UserError(f"label of {file_name} has size {sizes}", key=self.label_files[file_name])
            if prediction.numel() and int(prediction.max()) >= len(self.classes):
                raise UserError(
                    f"class {int(prediction.max())} was predicted in {file_name}, but {self.dataset_name} has "
                    f"{len(self.classes)} classes",
                    key="MODEL.SEM_SEG_HEAD.NUM_CLASSES",
                )
            matrix = confusion_matrix(prediction, truth.to(prediction.device), len(self.classes))
            self.matrix = matrix if self.matrix is None else self.matrix + matrix

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return {"sem_seg": {"mIoU", ..., "IoU-<class>", ...}} in percent; None in processes other than the first."""
        size = len(self.classes)
        own = np.zeros((size, size), np.int64) if self.matrix is None else self.matrix.cpu().numpy()
        gathered = comm.gather(own, dst=0)
        if not comm.is_main_process():
            return None
        matrix = np.sum(gathered, axis=0)
        result = metrics(matrix, self.classes, self.subsets)
        self.absent_classes = [name for name, count in zip(self.classes, matrix.sum(1)) if not count]
        if self.absent_classes:
            logger.info(
                "%s: not in the ground truth, and in no mean: %s", self.dataset_name, ", ".join(self.absent_classes)
            )
        if self.output_dir:
            self._write(Path(self.output_dir), matrix, result)
        return OrderedDict(sem_seg=result)

    def _write(self, folder: Path, matrix: np.ndarray, result: Mapping[str, float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "confusion_matrix.npz") as file:
            np.savez(file, matrix=matrix, classes=np.array(self.classes))
        without_nan = {name: None if np.isnan(value) else value for name, value in result.items()}  # JSON has no NaN
        report = {"dataset": self.dataset_name, "absent_classes": self.absent_classes, **without_nan}
        write_json(folder / "sem_seg_evaluation.json", report)


def evaluate_split(
    model: nn.Module | Callable[..., Any], loader: Iterable[Any], evaluator: DatasetEvaluator
) -> dict[str, dict[str, float]]:
    """Run ``model`` over ``loader`` and return the results of ``evaluator``; {} in processes other than the first."""
    with evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext():
        return inference_on_dataset(model, loader, evaluator)
