"""Pre-labels: decoded masks, areas and scores by hand, outlines, files, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as CocoFile

from tests.helpers.errors import refuses
from tests.helpers.models import tiny_cfg
from tmt_d2.data.class_lists import unnamed
from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.reader import read_label
from tmt_d2.inference.predictor import Prediction, Predictor
from tmt_d2.projects.label_selection import command as select_labels
from tmt_d2.projects.label_selection import prelabels
from tmt_d2.projects.label_selection.pool import Pool
from tmt_d2.projects.label_selection.prelabels import POLYGONS, mask_annotations, write_prelabels


def painted(annotations: list[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8, ids of the annotations drawn one over the other."""
    labels = np.full(size, 255, np.uint8)
    for each in annotations:
        segmentation = each["segmentation"]
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        labels[coco_mask.decode(segmentation) == 1] = each["category_id"] - 1
    return labels


def test_masks_by_hand() -> None:
    labels = np.array([[7, 7, 255, 0], [255, 255, 7, 255], [0, 0, 255, 255]], np.uint8)
    confidence = np.array([[0.9, 0.6, 0.1, 0.5], [0.1, 0.1, 0.3, 0.1], [0.2, 0.3, 0.1, 0.1]])
    annotations = [
        {key: each[key] for key in each if key != "segmentation"} for each in mask_annotations(labels, confidence)
    ]
    assert annotations == [  # the three 7 touch at a corner; the largest comes first
        {"category_id": 8, "bbox": [0, 0, 3, 2], "area": 3, "iscrowd": 1, "score": 0.6},
        {"category_id": 1, "bbox": [0, 2, 2, 1], "area": 2, "iscrowd": 1, "score": 0.25},
        {"category_id": 1, "bbox": [3, 0, 1, 1], "area": 1, "iscrowd": 1, "score": 0.5},
    ]
    assert mask_annotations(np.full((2, 3), 255, np.uint8), np.ones((2, 3))) == []


def test_decoded_masks_are_the_labels_and_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    labels = cv2.resize(rng.choice([0, 3, 18, 253, 255], (7, 11)).astype(np.uint8), (53, 31), interpolation=0)
    annotations = mask_annotations(labels, rng.random(labels.shape))
    assert np.array_equal(painted(annotations, labels.shape), labels)
    masks = [coco_mask.decode(each["segmentation"]) for each in annotations]
    assert np.array_equal(sum(masks), (labels != 255).astype(int))
    for each, mask in zip(annotations, masks):
        assert each["area"] == mask.sum() and cv2.connectedComponents(mask, connectivity=8)[0] == 2
        assert each["bbox"] == coco_mask.toBbox(each["segmentation"]).tolist()
    assert [each["area"] for each in annotations] == sorted((each["area"] for each in annotations), reverse=True)


@pytest.mark.parametrize("box", [(4, 2, 9, 7), (0, 0, 1, 1), (14, 0, 15, 12)])
def test_the_outline_of_a_rectangle_runs_along_pixel_edges(box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    labels = np.full((12, 15), 255, np.uint8)
    labels[top:bottom, left:right] = 2
    (annotation,) = mask_annotations(labels, np.ones(labels.shape), POLYGONS)
    corners = set(zip(annotation["segmentation"][0][::2], annotation["segmentation"][0][1::2]))
    assert corners == {(left, top), (left, bottom), (right, top), (right, bottom)} and annotation["iscrowd"] == 0
    assert np.array_equal(painted([annotation], labels.shape), labels)


def test_a_thin_ring_is_drawn_before_the_larger_area_within_it() -> None:
    labels = np.full((40, 40), 3, np.uint8)
    labels[1:-1, 1:-1] = 5  # 1444 pixels in a ring of 156
    annotations = mask_annotations(labels, np.ones(labels.shape), POLYGONS)
    assert [(each["category_id"], each["area"]) for each in annotations] == [(4, 156), (6, 1444)]
    assert np.array_equal(painted(annotations, labels.shape), labels)


def test_polygons_leave_out_enclosed_ignored_pixels() -> None:
    labels = np.full((24, 36), 2, np.uint8)
    for top, left, height, width in ((3, 4, 6, 5), (12, 4, 8, 9), (5, 20, 10, 10)):
        labels[top : top + height, left : left + width] = 255
    labels[8:12, 23:27] = 7  # an island in the third hole
    annotations = mask_annotations(labels, np.ones(labels.shape), POLYGONS)
    assert [each["category_id"] for each in annotations] == [3, 8]
    assert (
        painted(annotations, labels.shape) != labels
    ).sum() < 10  # of 186 in holes: bays of one pixel may be covered


def test_rings_that_cross_at_a_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 2 surround half of the 4, and touch each other only at the corner through which the 4 go on outside."""
    labels = np.full((14, 30), 255, np.uint8)
    labels[1:9, 1:9] = 2
    labels[2:8, 2:8] = 4
    labels[8, 8], labels[9:13, 9:29] = 4, 4
    labels[8, 7], labels[7, 8] = 2, 2
    labels[7, 7] = 4
    assert cv2.connectedComponents((labels == 4).astype(np.uint8), connectivity=8)[0] == 2
    monkeypatch.setattr(prelabels, "TOLERANCE", 0.0)
    for value in (255, 0):
        own = np.where(labels == 255, value, labels).astype(np.uint8)
        assert np.array_equal(painted(mask_annotations(own, np.ones(own.shape), POLYGONS), own.shape), own)


def test_confidence_is_the_share_of_the_best_class_at_the_size_of_the_labels() -> None:
    scores = torch.tensor([[[0.6, 0.2]], [[0.2, 0.6]]])
    assert Prediction(torch.zeros(1, 2), scores, None).confidence().tolist() == [[pytest.approx(0.75)] * 2]
    assert Prediction(torch.zeros(6, 4), scores, None).confidence().shape == (6, 4)


class Halves:
    """Class 0 on the left with confidence 0.9, class 1 on the right with 0.6."""

    image_format, classes = "RGB", unnamed(2)

    def __call__(self, pixels: np.ndarray, channels: str) -> Prediction:
        height, width = pixels.shape[:2]
        scores = torch.empty(2, height, width)
        scores[:, :, : width // 2] = torch.tensor([0.9, 0.1])[:, None, None]
        scores[:, :, width // 2 :] = torch.tensor([0.4, 0.6])[:, None, None]
        return Prediction(scores.argmax(0).to(torch.uint8), scores, None)


def pool_of(folder: Path, names: list[str], size: tuple[int, int] = (5, 8)) -> Pool:
    files = [folder / f"{name}.jpg" for name in names]
    rng = np.random.default_rng(0)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    rows: dict[str, Any] = dict.fromkeys(("features", "entropy", "margin", "classes", "domain"), np.zeros(0))
    return Pool(names, list(map(str, files)), **rows)


def png(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_files_of_the_selected_images(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "p", ["a/1", "b/1", "c"])
    write_prelabels(tmp_path, pool, [2, 0], Halves())  # type: ignore[arg-type]
    assert sorted(str(file.relative_to(tmp_path)) for file in (tmp_path / "prelabels").rglob("*.png")) == [
        "prelabels/a/1.png",
        "prelabels/c.png",
    ]
    expected = np.array([[0] * 4 + [1] * 4] * 5)
    assert np.array_equal(png(tmp_path / "prelabels" / "c.png"), expected)
    coco = CocoFile(str(tmp_path / "prelabels.json"))
    assert [(each["id"], each["file_name"]) for each in coco.loadImgs([1, 2])] == [(1, "c.jpg"), (2, "a/1.jpg")]
    assert (coco.imgs[1]["width"], coco.imgs[1]["height"]) == (8, 5)
    assert [(each["id"], each["name"]) for each in coco.cats.values()] == [(1, "class 0"), (2, "class 1")]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert [(each["category_id"], each["area"], each["score"]) for each in annotations] == [(1, 20, 0.9), (2, 20, 0.6)]
    assert np.array_equal(painted(annotations, (5, 8)), expected)
    assert len(coco.getAnnIds()) == len(set(coco.getAnnIds())) == 4


def test_a_killed_run_starts_again_and_a_finished_one_is_kept(tmp_path: Path) -> None:
    class Killed(Halves):
        calls = 0

        def __call__(self, pixels: np.ndarray, channels: str) -> Prediction:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(pixels, channels)

    pool = pool_of(tmp_path / "p", ["a", "b", "c"])
    with pytest.raises(KeyboardInterrupt):
        write_prelabels(tmp_path, pool, [0, 1, 2], Killed())  # type: ignore[arg-type]
    assert not (tmp_path / "prelabels").exists() and not (tmp_path / "prelabels.json").exists()
    write_prelabels(tmp_path, pool, [1, 2], Halves())  # type: ignore[arg-type]
    assert sorted(file.name for file in (tmp_path / "prelabels").iterdir()) == ["b.png", "c.png"]
    with refuses(str(tmp_path / "prelabels")):
        write_prelabels(tmp_path, pool, [0], Halves())  # type: ignore[arg-type]


def test_unconfident_pixels_are_255_in_both_files(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "p", ["c"])
    expected = np.array([[0] * 4 + [255] * 4] * 5)
    settings = tmp_path / "town.yaml"
    splits = "{train: {images: 'p/{stem}.jpg', labels: 'prelabels/{stem}.png'}}"
    settings.write_text(f"name: town\nsplits: {splits}\nclasses: [class 0, class 1]\nignore_ids: [255]\n")
    write_prelabels(tmp_path, pool, [0], Halves(), confidence=0.7)  # type: ignore[arg-type]
    label = read_label(str(tmp_path / "prelabels" / "c.png"), read_custom(settings).label_space)
    assert np.array_equal(label, expected)
    annotations = json.loads((tmp_path / "prelabels.json").read_text())["annotations"]
    assert np.array_equal(painted(annotations, (5, 8)), expected)


def command(folder: Path, *more: str) -> int:
    words = ["--config-file", str(folder / "model.yaml"), "--weights", str(folder / "model.pth"), "--budget", "2"]
    return select_labels.main([*words, "--target", str(folder / "p"), "--output", str(folder / "out"), *more])


def test_a_confidence_without_prelabels_is_refused(tmp_path: Path) -> None:
    with refuses("--confidence"):
        command(tmp_path, "--confidence", "0.1")


@pytest.mark.slow
def test_the_command_pre_labels_the_proposed_images(tmp_path: Path) -> None:
    cfg = tiny_cfg(INPUT__MIN_SIZE_TEST=0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "model.yaml").write_text(cfg.dump())
    pool_of(tmp_path / "p", ["0", "1", "2"], (75, 91))
    assert command(tmp_path, "--prelabels", "polygons", "--confidence", "0.06") == 0
    proposed = (tmp_path / "out" / "selected.txt").read_text().split()
    coco = json.loads((tmp_path / "out" / "prelabels.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == proposed and not coco["annotations"][0]["iscrowd"]
    predictor = Predictor.from_config(str(tmp_path / "model.yaml"), str(tmp_path / "model.pth"))
    for name in proposed:
        labels = png(tmp_path / "out" / "prelabels" / f"{Path(name).stem}.png")
        confident = labels != 255
        assert confident.mean() > 0
        assert np.array_equal(labels[confident], predictor(tmp_path / "p" / name).labels.numpy()[confident])
    with refuses(str(tmp_path / "out" / "prelabels")):
        command(tmp_path, "--prelabels")
    assert command(tmp_path) == 0  # everything else is written again
