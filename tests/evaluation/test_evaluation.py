"""Confusion matrix and metrics by hand and by brute force, and the evaluation of a split."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from PIL import Image, ImageOps
from torch.nn import functional as F

from tests.helpers.small_runs import exif
from tmt_d2.data.datasets.label_spaces import CLASSES, PALETTE, TRAIN_IDS
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import (
    SemanticEvaluator,
    confusion_matrix,
    evaluate_split,
    labels_at_size,
    metrics,
)

SIZES = ((17, 23), (8, 40), (31, 5))


class Split:
    """A registered split of random label files; ``labels`` holds what is in them."""

    def __init__(self, folder: Path, labels: list[np.ndarray]) -> None:
        self.name = f"split_{uuid.uuid4().hex}"
        self.labels = labels
        records = []
        for index, label in enumerate(labels):
            path = folder / f"{self.name}_{index}.png"
            Image.fromarray(label).save(path)
            records.append(
                {
                    "file_name": f"{index}.jpg",
                    "sem_seg_file_name": str(path),
                    "image_id": str(index),
                    "dataset": self.name,
                }
            )
        register_split(self.name, lambda: records, TRAIN_IDS)

    @property
    def inputs(self) -> list[dict[str, Any]]:
        return [{"file_name": f"{i}.jpg", "height": a.shape[0], "width": a.shape[1]} for i, a in enumerate(self.labels)]


@pytest.fixture
def make_split(tmp_path: Path) -> Iterator[Any]:
    made: list[Split] = []

    def make(labels: list[np.ndarray]) -> Split:
        made.append(Split(tmp_path, labels))
        return made[-1]

    yield make
    for split in made:
        DatasetCatalog.remove(split.name)
        MetadataCatalog.remove(split.name)


def random_labels(rng: np.random.Generator, without: tuple[int, ...] = ()) -> list[np.ndarray]:
    allowed = np.array([c for c in [*range(19), 255] if c not in without], np.uint8)
    return [rng.choice(allowed, size) for size in SIZES]


def random_scores(rng: np.random.Generator, labels: list[np.ndarray]) -> list[torch.Tensor]:
    """Scores that are right on about half of the pixels."""
    scores = []
    for label in labels:
        planes = rng.random((19, *label.shape))
        right = rng.random(label.shape) < 0.5
        for c in range(19):
            planes[c][right & (label == c)] += 1
        scores.append(torch.from_numpy(planes.astype(np.float32)))
    return scores


def read_numpy(path: str, dtype: Any = None, copy: bool = False) -> np.ndarray:
    return np.array(Image.open(path), dtype=dtype)


def test_confusion_and_metrics_by_hand() -> None:
    truth = torch.tensor([[0, 0], [1, 255]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8)
    matrix = confusion_matrix(prediction, truth, 2)
    assert matrix.tolist() == [[1, 1], [0, 1]]
    result = metrics(matrix.numpy(), ("a", "b"))
    assert result["IoU-a"] == pytest.approx(50)  # 1 / (2 + 1 - 1)
    assert result["IoU-b"] == pytest.approx(50)  # 1 / (1 + 2 - 1)
    assert result["mIoU"] == pytest.approx(50)
    assert result["fwIoU"] == pytest.approx(50)
    assert result["mACC"] == pytest.approx(75)
    assert result["pACC"] == pytest.approx(200 / 3)


def test_iou_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.choice([0, 1, 2, 4, 255], (13, 9)), rng.integers(0, 5, (13, 9))
    result = metrics(confusion_matrix(torch.tensor(prediction), torch.tensor(truth), 5).numpy(), tuple("abcde"))
    valid = truth != 255
    ious = {}
    for c, name in enumerate("abcde"):
        t, p = (truth == c) & valid, (prediction == c) & valid
        if t.any():
            ious[name] = 100 * (t & p).sum() / (t | p).sum()
            assert result[f"IoU-{name}"] == pytest.approx(ious[name])
            assert result[f"ACC-{name}"] == pytest.approx(100 * (t & p).sum() / t.sum())
    assert result["mIoU"] == pytest.approx(np.mean(list(ious.values())))
    assert np.isnan(result["IoU-d"])
    assert "d" not in ious


def test_predicting_an_absent_class_costs_the_others_only() -> None:
    truth = torch.zeros(2, 2, dtype=torch.uint8)
    result = metrics(confusion_matrix(torch.tensor([[0, 0], [0, 1]]), truth, 2).numpy(), ("a", "b"))
    assert result["mIoU"] == pytest.approx(75)
    assert np.isnan(result["IoU-b"])


def test_subsets_by_hand() -> None:
    matrix = np.array([[1, 1, 0], [0, 3, 1], [0, 0, 0]])  # IoU 1/2, 3/5, absent
    result = metrics(matrix, ("a", "b", "c"), {"2 classes": (1, 2), "1 class": (2,)})
    assert result["mIoU-2 classes"] == pytest.approx(60)
    assert np.isnan(result["mIoU-1 class"])
    assert result["mIoU"] == pytest.approx(55)


@pytest.mark.parametrize("without", [(), (9, 14, 16), (255,)])
def test_equals_detectron2(make_split: Any, without: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    split = make_split(random_labels(rng, without))
    outputs = [{"sem_seg": s} for s in random_scores(rng, split.labels)]
    theirs = SemSegEvaluator(split.name, distributed=False, sem_seg_loading_fn=read_numpy)
    ours = SemanticEvaluator(split.name)
    for evaluator in (theirs, ours):
        evaluator.reset()
        evaluator.process(split.inputs, outputs)
    expected, result = theirs.evaluate()["sem_seg"], ours.evaluate()["sem_seg"]
    for name, value in result.items():
        assert value == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
    assert ours.absent_classes == [CLASSES[c] for c in without if c != 255]
    assert {k for k in expected if "Boundary" not in k and "min(" not in k} == set(result)


def test_given_labels_are_used_before_scores(make_split: Any) -> None:
    rng = np.random.default_rng(4)
    split = make_split(random_labels(rng, (255,)))
    scores = random_scores(rng, split.labels)
    evaluator = SemanticEvaluator(split.name)
    evaluator.process(
        split.inputs, [{"sem_seg": s, "sem_seg_labels": torch.tensor(a)} for s, a in zip(scores, split.labels)]
    )
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)
    evaluator.reset()
    evaluator.process(split.inputs, [{"sem_seg": s} for s in scores])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] < 90  # negative control


def test_image_without_labeled_pixels(make_split: Any) -> None:
    label = np.array([[0, 1, 1]], np.uint8)
    split = make_split([label, np.full((4, 5), 255, np.uint8)])
    evaluator = SemanticEvaluator(split.name)
    evaluator.process(
        split.inputs, [{"sem_seg_labels": torch.tensor(label)}, {"sem_seg_labels": torch.zeros(4, 5).long()}]
    )
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


def test_nothing_labeled_at_all_is_nan_not_zero(make_split: Any, tmp_path: Path) -> None:
    split = make_split([np.full((4, 5), 255, np.uint8)])
    evaluator = SemanticEvaluator(split.name, str(tmp_path / "out"))
    evaluator.process(split.inputs, [{"sem_seg_labels": torch.zeros(4, 5).long()}])
    result = evaluator.evaluate()["sem_seg"]
    assert all(np.isnan(result[name]) for name in ("mIoU", "fwIoU", "mACC", "pACC"))
    assert len(evaluator.absent_classes) == 19
    assert json.loads((tmp_path / "out" / "sem_seg_evaluation.json").read_text())["mIoU"] is None


def test_two_processes_together_equal_one(make_split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    split = make_split(random_labels(rng))
    outputs = [{"sem_seg": s} for s in random_scores(rng, split.labels)]
    alone, first, second = (SemanticEvaluator(split.name) for _ in range(3))
    alone.process(split.inputs, outputs)
    expected = alone.evaluate()["sem_seg"]
    first.process(split.inputs[:1], outputs[:1])
    second.process(split.inputs[1:], outputs[1:])

    sent: list[Any] = []
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: sent.append(data) or [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert second.evaluate() is None
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [data, *sent])
    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    assert first.evaluate()["sem_seg"] == pytest.approx(expected, nan_ok=True)
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [data])
    assert first.evaluate()["sem_seg"] != pytest.approx(expected, nan_ok=True)  # negative control


def test_files(make_split: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    split = make_split(random_labels(rng, (16,)))
    MetadataCatalog.get(split.name).set(
        class_subsets={"16 classes": tuple(c for c in range(19) if c not in (9, 14, 16))}
    )
    out = tmp_path / "out"
    evaluator = SemanticEvaluator(split.name, str(out))
    outputs = [{"sem_seg": s} for s in random_scores(rng, split.labels)]
    evaluator.process(split.inputs, outputs)
    result = evaluator.evaluate()["sem_seg"]
    report = json.loads((out / "sem_seg_evaluation.json").read_text())
    assert report["absent_classes"] == ["train"]
    assert report["IoU-train"] is None
    assert report["mIoU-16 classes"] == pytest.approx(result["mIoU-16 classes"])
    with np.load(out / "confusion_matrix.npz") as saved:
        assert saved["matrix"].sum() == sum((a != 255).sum() for a in split.labels)
        assert metrics(saved["matrix"], saved["classes"])["mIoU"] == pytest.approx(result["mIoU"])
    assert sorted(p.name for p in out.iterdir()) == ["confusion_matrix.npz", "sem_seg_evaluation.json"]


def test_a_failed_write_leaves_the_old_report(make_split: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split([np.zeros((2, 2), np.uint8)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "confusion_matrix.npz").write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        SemanticEvaluator(split.name, str(tmp_path / "out")).evaluate()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["confusion_matrix.npz"]
    assert (tmp_path / "out" / "confusion_matrix.npz").read_bytes() == b"old"


def test_wrong_inputs_are_named(make_split: Any) -> None:
    split = make_split([np.zeros((2, 3), np.uint8)])
    evaluator = SemanticEvaluator(split.name)
    with pytest.raises(UserError, match=r"0\.jpg") as error:
        evaluator.process(split.inputs, [{"sem_seg_labels": torch.zeros(3, 2).long()}])
    assert error.value.key == evaluator.label_files["0.jpg"]
    with pytest.raises(UserError, match=r"x\.jpg") as error:
        evaluator.process([{"file_name": "x.jpg"}], [{"sem_seg_labels": torch.zeros(2, 3).long()}])
    assert (error.value.key, error.value.value) == ("DATASETS.TEST", split.name)
    with pytest.raises(UserError, match=r"0\.jpg") as error:
        evaluator.process(split.inputs, [{"sem_seg_labels": torch.full((2, 3), 19)}])
    assert error.value.key == "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


@pytest.mark.parametrize("shape", [(8, 40), (17, 17)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("label_is", ["as stored", "turned"])
def test_an_image_with_an_orientation_is_scored_as_it_is_trained_on(
    tmp_path: Path, shape: tuple[int, int], orientation: int, label_is: str
) -> None:
    """By a model that knows each class by its color; only where sizes cannot tell does a turned label not fit."""
    stored = np.random.default_rng(9).integers(0, 19, shape).astype(np.uint8)
    colors = np.array(PALETTE, np.uint8)
    Image.fromarray(colors[stored]).save(tmp_path / "i.png", exif=exif(orientation))
    label = Image.fromarray(stored)
    label.getexif()[0x0112] = orientation
    if label_is == "turned":
        ImageOps.exif_transpose(label, in_place=True)
    label.save(tmp_path / "l.png")
    name = f"split_{uuid.uuid4().hex}"
    record = {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png"), "dataset": name}
    register_split(name, lambda: [record], TRAIN_IDS)

    def model(batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        pixels = batch[0]["image"].permute(1, 2, 0)[:, :, None]
        assert pixels.shape[:2] == (batch[0]["height"], batch[0]["width"])
        return [{"sem_seg_labels": (pixels == torch.from_numpy(colors)).all(-1).long().argmax(-1)}]

    mapper = SemanticMapper(is_train=False, label_spaces={}, min_sizes=(0,), max_size=0)
    trained = SemanticMapper(is_train=True, label_spaces={name: TRAIN_IDS}, min_sizes=(0,), max_size=0)(record)
    result = evaluate_split(model, [[mapper(record)]], SemanticEvaluator(name))["sem_seg"]
    (fitted,) = model([trained])
    training_accuracy = float((fitted["sem_seg_labels"] == trained["sem_seg"]).double().mean())
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    assert result["pACC"] == pytest.approx(100 * training_accuracy)
    cannot_tell = label_is == "turned" and (orientation == 3 or (orientation > 4 and shape[0] == shape[1]))
    assert (result["pACC"] == pytest.approx(100)) == (not cannot_tell)


@pytest.mark.parametrize("size", [(7, 9), (29, 37), (3, 4), (14, 18), (1, 1)])
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_labels_at_size_equal_argmax_of_interpolation(size: tuple[int, int], classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(classes, 7, 9, generator=generator)
    before = scores.clone()
    labels = labels_at_size(scores, size)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), interpolated(scores, size).argmax(0))
    assert torch.equal(scores, before)


@pytest.mark.parametrize("size", [(7, 9), (29, 37), (100, 201)])
def test_ties_go_to_the_first_class(size: tuple[int, int]) -> None:
    scores = torch.randint(0, 3, (19, 7, 9), generator=torch.Generator().manual_seed(0)).float()
    labels = labels_at_size(scores, size).long()
    one_by_one = torch.cat([interpolated(plane[None], size) for plane in scores])
    assert torch.equal(labels, one_by_one.argmax(0))
    together = interpolated(scores, size)
    assert torch.allclose(together.gather(0, labels[None])[0], together.amax(0), rtol=0, atol=1e-6)


def interpolated(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_no_prediction_of_the_first_class(value: float) -> None:
    scores = torch.rand(3, 4, 5)
    assert labels_at_size(scores, (8, 10)).shape == (8, 10)
    scores[:, 1, 1] = value
    with pytest.raises(FloatingPointError):
        labels_at_size(scores, (8, 10))
