"""Loader processes that are not forked know the tables of labels, of one's own data sets too."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.small_runs import small_cfg
from tmt_d2.data import label_spaces
from tmt_d2.data.loaders import build_paired_loader
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import read_label

pytestmark = pytest.mark.slow


def test_a_pickled_table_is_the_table(tmp_path: Path) -> None:
    file = tmp_path / "a_gtFine_labelTrainIds.png"
    Image.fromarray(np.array([[7, 18, 255]], np.uint8)).save(file)
    assert read_label(str(file), pickle.loads(pickle.dumps(label_spaces.CITYSCAPES))).tolist() == [[7, 18, 255]]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pairs_of_a_registered_source(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    records: list[dict[str, Any]] = []
    for name in ("source", "target"):
        image, label = tmp_path / f"{name}.png", tmp_path / f"{name}_ids.png"
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
        Image.fromarray(np.ones((64, 64), np.uint8)).save(label)
        records.append({"file_name": str(image), "sem_seg_file_name": str(label), "image_id": name})
        DatasetCatalog.register(f"own_{name}", lambda name=name: [records[name == "target"]])
        MetadataCatalog.get(f"own_{name}").set(stuff_classes=["lawn", "path"], ignore_label=255)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        cfg = small_cfg(
            "full", tmp_path, tmp_path, DATASETS__TRAIN=("own_target",), DATASETS__SOURCE_TRAIN=("own_source",)
        )
        mapper = SemanticMapper(cfg, is_train=True)
        loader = build_paired_loader(["own_source"], ["own_target"], mapper, 2, seed=0, num_workers=1)
        batches = iter(loader)
        batch = next(batches)
        del batches, loader
    finally:
        multiprocessing.set_start_method(before, force=True)
        for name in ("own_source", "own_target"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert [sample["image_id"] for sample in batch] == ["source", "target"]
    assert all((sample["sem_seg"] == 1).all() and "bad_samples" not in sample for sample in batch)
