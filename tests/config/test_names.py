"""What is nearly right is accepted or answered with the way out: values, overrides, names, foreign data."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.small_runs import small_cfg, small_units
from tmt_d2 import setup_cfg
from tmt_d2.cli import score, train, train_matrix, train_pair
from tmt_d2.cli.common import add_overrides, parse
from tmt_d2.config import flatten
from tmt_d2.config.keys import RENAMED
from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES, CLASSES
from tmt_d2.data.datasets.registration import check_registered, label_space_of, records_of
from tmt_d2.data.reader import UndefinedIdError, read_label
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError, did_you_mean
from tmt_d2.experiments.running import check_names
from tmt_d2.experiments.scoring import score_checkpoint
from tmt_d2.inference.images import find_images

TMT = str(TINY_CONFIG)


def test_values_that_plainly_mean_another_kind() -> None:
    cfg = setup_cfg(TMT, ["MODEL.TMT.P_T", "0", "DATASETS.TRAIN", "gtav_sem_seg_train", "DATASETS.CUSTOM", "a.yaml"])
    assert cfg.MODEL.TMT.P_T == 0.0 and type(cfg.MODEL.TMT.P_T) is float
    assert tuple(cfg.DATASETS.TRAIN) == ("gtav_sem_seg_train",) and tuple(cfg.DATASETS.CUSTOM) == ("a.yaml",)
    assert tuple(setup_cfg(TMT, ["DATASETS.TEST", "('a', 'b')"]).DATASETS.TEST) == ("a", "b")
    with pytest.raises(UserError, match="CELL_SIZES"):  # no list of names
        setup_cfg(TMT, ["MODEL.TMT.CELL_SIZES", "many"])
    with pytest.raises(UserError, match="SOLVER.MAX_ITER"):  # the other way round something would be lost
        setup_cfg(TMT, ["SOLVER.MAX_ITER", "1.5"])


def test_values_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f'_BASE_: "{TMT}"\nMODEL: {{TMT: {{P_T: 0}}}}\nDATASETS: {{TEST: gtav_sem_seg_val}}\n')
    cfg = setup_cfg(str(file))
    assert cfg.MODEL.TMT.P_T == 0.0 and tuple(cfg.DATASETS.TEST) == ("gtav_sem_seg_val",)


def test_old_keys_are_answered_with_their_new_names(tmp_path: Path) -> None:
    known = flatten(setup_cfg(TMT))
    for old, new in RENAMED.items():
        assert old not in known and new in known
        with pytest.raises(UserError, match=re.escape(new)) as answer:
            setup_cfg(TMT, [old, "1"])
        assert answer.value.key == old
    (tmp_path / "old.yaml").write_text("TRANSFER: {SELF_TRAINING: {EMA: 0.9}}")
    with pytest.raises(UserError, match=r"SELF_TRAINING\.EMA_MOMENTUM"):
        setup_cfg(str(tmp_path / "old.yaml"))


@pytest.mark.parametrize(
    ("opts", "key", "hint"),
    [
        (["MODEL.TMT.PT", "0.3"], "MODEL.TMT.PT", "MODEL.TMT.P_T"),
        (["SEED"], "SEED", ""),
        (["MODEL.TMT.ATTENTION", "ofd"], "MODEL.TMT.ATTENTION", "did you mean off"),
    ],
)
def test_mistakes_are_answered_with_the_nearest_name(opts: list[str], key: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as error:
        setup_cfg(TMT, opts)
    assert error.value.key == key


def test_a_config_file_is_needed() -> None:
    with pytest.raises(UserError, match="--config-file"):
        setup_cfg("")


def test_overrides_may_stand_anywhere() -> None:
    plain = argparse.ArgumentParser()
    plain.add_argument("--methods", nargs="+")
    plain.add_argument("--flag", action="store_true")
    add_overrides(plain)
    words = ["SEED", "-1", "--methods", "full", "tmt", "--flag", "MODEL.TMT.P_T", "0", "OUTPUT_DIR", "out"]
    args = parse(plain, words)
    assert args.methods == ["full", "tmt"] and args.flag
    assert args.opts == ["SEED", "-1", "MODEL.TMT.P_T", "0", "OUTPUT_DIR", "out"]
    words = ["--config-file", "a.yaml", "NEW_SECTION.KEY", "3", "--resume", "--num-gpus", "2", "--method", "tmt"]
    args = parse(train.parser(), words)
    assert args.resume and args.num_gpus == 2 and args.method == "tmt" and args.opts == ["NEW_SECTION.KEY", "3"]
    assert parse(plain, ["--methods", "full", "--", "SEED", "3"]).opts == ["SEED", "3"]
    for words in (["SEED"], ["SEED", "--flag"]):
        with pytest.raises(UserError) as error:
            parse(plain, words)
        assert error.value.key == "SEED"


def test_the_nearest_name() -> None:
    assert did_you_mean("cityscape", ["gtav", "cityscapes"]) == "; did you mean cityscapes?"
    assert did_you_mean("x", ["gtav"]) == ""
    with pytest.raises(UserError, match="KEY.* gtav_sem_seg_train"):
        check_registered("gtav_sem_seg_trian", "KEY")
    with pytest.raises(FileNotFoundError, match="gtav_sem_seg_val"):
        find_images("gtav_sem_seg_vla")


def run(command: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *words])
    command.main()


def test_commands_know_the_nearest_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring = ["--config-file", TMT, "--checkpoints", "x.pth"]
    with pytest.raises(UserError, match="--target.* cityscapes_sem_seg_train"):
        run(score, monkeypatch, *scoring, "--target", "cityscape")
    with pytest.raises(UserError, match="--sources.* bdd100k_sem_seg_train"):
        run(score, monkeypatch, *scoring, "--target", "gtav", "--sources", "bdd100")
    pair = ["--model", TMT, "--output", str(tmp_path / "out"), "--source", "gta", "--target", "bdd100k"]
    with pytest.raises(UserError, match="gta.* gtav_sem_seg_train"):
        run(train_pair, monkeypatch, *pair)
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        run(train_pair, monkeypatch, *pair, "--model", "nowhere.yaml")
    (tmp_path / "matrix.yaml").write_text(f"model: {TMT}\npairs: [gtav-bdd100]\nmethods: [full]\n")
    matrix = ["--config", str(tmp_path / "matrix.yaml"), "--output", str(tmp_path / "out"), "--dry-run"]
    with pytest.raises(UserError, match="gtav-bdd100.* bdd100k_sem_seg_train"):
        run(train_matrix, monkeypatch, *matrix)
    (tmp_path / "matrix.yaml").write_text(f"model: {TMT}\npairs: [gtav-bdd100k]\nmethods: [ful]\n")
    with pytest.raises(UserError, match="did you mean full"):
        run(train_matrix, monkeypatch, *matrix)
    assert not (tmp_path / "out").exists()


def test_one_domain_twice_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_names(small_units(tmp_path))
    assert not caplog.text
    check_names(small_units(tmp_path, pairs=["cityscapes-cityscapes"]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cityscapes-cityscapes" in caplog.text


@pytest.fixture
def foreign(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that registers two splits as Detectron2's tutorial does, of pictures whose labels are train ids."""
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
    import cv2
    import numpy as np

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


def test_a_module_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMT_IMPORT", "no_such_module")
    with pytest.raises(UserError) as error:
        setup_cfg(TMT)
    assert error.value.key == "TMT_IMPORT"
