"""Data sets registered in Detectron2's own way, by a module that TMT_IMPORT names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.helpers.errors import refuses
from tests.helpers.small_runs import small_cfg
from tmt_d2.data.class_lists import MAX_CLASSES
from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES, CLASSES
from tmt_d2.data.datasets.registration import check_readable, label_space_of, records_of
from tmt_d2.data.reader import SizeError, UndefinedIdError, read_label
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.experiments.scoring import score_checkpoint
from tmt_d2.inference.images import find_images


@pytest.fixture
def foreign(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that registers two splits as Detectron2's tutorial does, of images whose labels are train ids."""
    (tmp_path / "my_city.py").write_text(
        f"""
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg
root = "{scenes}/bdd100k"
for split in ("train", "val"):
    name = f"my_city_sem_seg_{{split}}"
    folders = f"{{root}}/labels/sem_seg/masks/{{split}}", f"{{root}}/images/10k/{{split}}"
    DatasetCatalog.register(name, lambda folders=folders: load_sem_seg(*folders, "png", "jpg"))
    MetadataCatalog.get(name).set(stuff_classes={list(CLASSES)}, ignore_label=255, evaluator_type="sem_seg")
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TMT_IMPORT", "my_city")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    yield "my_city"
    for split in ("train", "val"):
        DatasetCatalog.remove(f"my_city_sem_seg_{split}")
        MetadataCatalog.remove(f"my_city_sem_seg_{split}")
    sys.modules.pop("my_city", None)


@pytest.mark.slow
def test_a_data_set_registered_the_detectron2_way(foreign: str, start: Path, tmp_path: Path) -> None:
    train, val = f"{foreign}_sem_seg_train", f"{foreign}_sem_seg_val"
    small: dict[str, Any] = {"SOLVER__MAX_ITER": 1, "DATASETS__TRAIN": train, "DATASETS__TEST": val}
    small["TRANSFER__LABEL_FRACTION"] = 0.5
    small["DATASETS__SOURCE_TEST"] = "cityscapes_sem_seg_val"
    results = {stage: run_stage(small_cfg(stage, tmp_path / stage, start, **small)) for stage in ("tmt", "estimator")}
    assert results["tmt"][val]["mIoU"] >= 0 and len(results["estimator"]["proxy_a_distance"]) == 3
    own = small_cfg("tmt", tmp_path / "own", start, **small | {"DATASETS__TEST": "bdd100k_sem_seg_val"})
    (there,) = run_stage(own, eval_only=True).values()
    (here,) = run_stage(small_cfg("tmt", tmp_path / "own", start, **small), eval_only=True).values()
    assert torch.equal(*(torch.tensor(list(each.values())).nan_to_num(-1) for each in (there, here)))
    cfg = small_cfg("tmt", tmp_path, start, **small)
    assert "LEEP" in score_checkpoint(cfg, [train], images=2, pixels=20, draws=1)
    assert [image.record["dataset"] for image in find_images(val)] == [val]
    record = records_of([val])[0]
    assert (
        label_space_of(val).classes == CITYSCAPES_CLASSES
        and read_label(record["sem_seg_file_name"], label_space_of(val)).size
    )


def test_its_labels_are_train_ids_as_they_are(tmp_path: Path) -> None:
    MetadataCatalog.get("two_classes").set(stuff_classes=["a", "b"], ignore_label=9)
    DatasetCatalog.register("two_classes", list)
    try:
        cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 1, 9, 255]], np.uint8))
        cv2.imwrite(str(tmp_path / "b.png"), np.array([[0, 2]], np.uint8))
        space = label_space_of("two_classes")
        assert read_label(str(tmp_path / "a.png"), space).tolist() == [[0, 1, 255, 255]]
        with pytest.raises(UndefinedIdError, match="b.png"):
            read_label(str(tmp_path / "b.png"), space)
        MetadataCatalog.remove("two_classes")
        with pytest.raises(UserError, match="two_classes"):
            label_space_of("two_classes")
    finally:
        DatasetCatalog.remove("two_classes")


def test_more_classes_than_a_byte_holds_are_refused(clean_catalogs: None) -> None:
    for count in (MAX_CLASSES, MAX_CLASSES + 1):
        name = f"{count}_classes"
        MetadataCatalog.get(name).set(stuff_classes=[f"class {index}" for index in range(count)])
        DatasetCatalog.register(name, list)
    assert len(label_space_of(f"{MAX_CLASSES}_classes").classes) == MAX_CLASSES
    with refuses("data set", f"{MAX_CLASSES + 1}_classes"):
        label_space_of(f"{MAX_CLASSES + 1}_classes")


def test_images_and_labels_of_other_sizes_are_found_before_training(tmp_path: Path) -> None:
    record = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "label.png")}
    for shape, size in (((4, 6), (4, 6)), ((4, 6), (6, 4)), ((4, 6), (4, 7))):
        cv2.imwrite(record["file_name"], np.zeros((*shape, 3), np.uint8))
        cv2.imwrite(record["sem_seg_file_name"], np.zeros(size, np.uint8))
        with nullcontext() if shape == size else pytest.raises(SizeError):
            check_readable([record])


def test_a_split_without_an_image_is_refused(clean_catalogs: None) -> None:
    DatasetCatalog.register("nothing_sem_seg_val", list)
    MetadataCatalog.get("nothing_sem_seg_val").set(stuff_classes=["a"])
    with refuses("nothing_sem_seg_val"):
        records_of(["nothing_sem_seg_val"])
