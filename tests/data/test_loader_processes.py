"""Loader processes that are not forked know the tables of labels, of one's own data sets too."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from tests.helpers.custom_data import save, write
from tests.helpers.small_runs import small_cfg
from tmt_d2.adaptation.alignment import LeepAlignment
from tmt_d2.adaptation.estimator import held_out_loader
from tmt_d2.adaptation.map_cache import prepare_maps
from tmt_d2.config import replace_keys
from tmt_d2.data import register_data
from tmt_d2.data.labeled import LabelChoice
from tmt_d2.data.loaders import Shares, build_paired_loader, build_semi_supervised_loader, build_train_loader
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.rare_classes import RareClasses
from tmt_d2.engine.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_catalogs")]

IDS = np.repeat([[7, 9]], 32, 1).repeat(64, 0).astype(np.uint8)  # (64, 64): lawn on the left, path on the right


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """The way in which loader processes begin; those of the server have the slow imports from it."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_forkserver_preload(["detectron2.data", "detectron2.modeling", "scipy.optimize"])
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def custom_cfg(folder: Path) -> CfgNode:
    """Two custom data sets with different ids for the same classes; the target also has an unlabeled image."""
    image = np.full((*IDS.shape, 3), 90, np.uint8).tolist()
    for name, ids in (("town", IDS), ("field", IDS + 1)):
        save(folder / name / "rgb" / "a.png", image)
        save(folder / name / "ids" / "a_ids.png", ids.tolist())
        splits = {split: {"images": "rgb/{stem}.png", "labels": "ids/{stem}_ids.png"} for split in ("train", "val")}
        if name == "field":
            save(folder / name / "more" / "b.png", image)
            splits["train"]["unlabeled"] = "more/{stem}.png"
        table = {int(ids[0, 0]): "lawn", int(ids[0, -1]): "path"}
        write(folder / name, name=name, splits=splits, classes=["lawn", "path"], train_ids=table)
    cfg = small_cfg(
        "otce",
        folder / "output",
        folder / "weights.pth",
        DATASETS__CUSTOM=tuple(str(folder / name / "town.yaml") for name in ("town", "field")),
        DATASETS__TRAIN=("field_sem_seg_train",),
        DATASETS__TEST=("field_sem_seg_val",),
        DATASETS__SOURCE_TRAIN=("town_sem_seg_train",),
        DATASETS__SOURCE_TEST=("town_sem_seg_val",),
        SOLVER__IMS_PER_BATCH=4,
        INPUT__MIN_SIZE_TRAIN=(64,),
        SELF_TRAINING__RARE_CLASS_TEMPERATURE=0.5,
        DATALOADER__NUM_WORKERS=1,
    )
    register_data(cfg)
    return cfg


def first(loader: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    batch = next(iter(loader))
    assert not any("bad_samples" in sample for sample in batch)
    return batch


class AllLawn(nn.Module):
    def forward(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"sem_seg": torch.tensor([1.0, 0.0])[:, None, None].expand(2, 64, 64)} for _ in items]


@pytest.mark.parametrize("start_method", ["forkserver"], indirect=True)  # spawn pickles the same, slowly
def test_every_loader_reads_custom_data(start_method: str, tmp_path: Path) -> None:
    cfg = custom_cfg(tmp_path)
    target, source = cfg.DATASETS.TRAIN, cfg.DATASETS.SOURCE_TRAIN
    mapper, choices = SemanticMapper(cfg, is_train=True), {"seed": 0, "num_workers": 1}
    (tmp_path / "weights.pth").touch()
    rare = RareClasses.from_config(cfg)
    assert rare is not None
    batches = {
        "train": first(build_train_loader(target, mapper, 2, **choices)),
        "alignment": first(LeepAlignment.build_train_loader(cfg)),
        "self-training": first(
            build_semi_supervised_loader(
                Shares(1, 1, 1),
                target=target,
                source=source,
                mapper=mapper,
                labels=LabelChoice(),
                rare=rare,
                **choices,
            )
        ),
    }
    labeled = [sample for batch in batches.values() for sample in batch if sample.get("labeled", True)]
    assert [len(batch) for batch in batches.values()] == [2, 4, 3] and len(labeled) == 8
    for sample in labeled:  # mirrored or not
        assert sorted(sample["sem_seg"][0, [0, -1]].tolist()) == [0, 1]
        assert sample["sem_seg"].sum() == 64 * 32
    plain = SemanticMapper(cfg, is_train=True, with_label=False)
    estimator = first(build_paired_loader(source, target, plain, 2, **choices))
    assert [(sample["domain"], sample["dataset"]) for sample in estimator] == [(0, *source), (1, *target)]
    held_out = list(held_out_loader(cfg, target, 2))
    assert [batch[0]["image_id"] for batch in held_out] == ["a", "b"]
    scores = Trainer.test(cfg, AllLawn())[cfg.DATASETS.TEST[0]]
    assert (scores["ACC-lawn"], scores["IoU-lawn"], scores["IoU-path"]) == (100, 50, 0)


@pytest.mark.parametrize("start_method", ["forkserver"], indirect=True)
def test_maps_of_custom_data(start_method: str, tmp_path: Path) -> None:
    cfg = replace_keys(
        custom_cfg(tmp_path),
        {"MODEL.META_ARCHITECTURE": "TransferableMaskFormer", "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2},
    )
    (tmp_path / "weights.pth").touch()
    maps = prepare_maps(cfg, build_model(cfg), lambda cfg, model: None)
    assert maps is not None
    (batch,) = [first(build_train_loader(cfg.DATASETS.TRAIN, SemanticMapper(cfg, maps=maps), 1, seed=0, num_workers=1))]
    assert [tuple(level.shape) for level in batch[0]["transferability"]] == [(2, 2), (4, 4), (8, 8)]
