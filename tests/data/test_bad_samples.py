"""Unreadable training images are replaced, named once and counted; too many of them end the run with one line."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.small_runs import contents, differences, make_scenes, small_cfg
from tmt_d2.data import loaders
from tmt_d2.data.datasets import registration
from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import DataError
from tmt_d2.engine.bad_samples import BadSamples
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.step import TrainingStep


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def flipped(data: bytes) -> bytes:
    return (
        data[: len(data) // 2]
        + bytes(byte ^ 0xFF for byte in data[len(data) // 2 :][:40])
        + data[len(data) // 2 + 40 :]
    )


IMAGE = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
LABEL = np.full((24, 32), 7, np.uint8)
# (image file, label file); None: there is no such file
BROKEN: dict[str, tuple[bytes | None, bytes | None]] = {
    "no image": (None, png(LABEL)),
    "no label": (jpeg(IMAGE), None),
    "empty image": (b"", png(LABEL)),
    "empty label": (jpeg(IMAGE), b""),
    "truncated image": (jpeg(IMAGE)[:500], png(LABEL)),
    "truncated label": (jpeg(IMAGE), png(np.random.default_rng(0).integers(7, 12, (24, 32)).astype(np.uint8))[:70]),
    "text": (b"<html>404 not found</html>", png(LABEL)),
    "damaged label": (jpeg(IMAGE), flipped(png(np.random.default_rng(1).integers(7, 12, (24, 32)).astype(np.uint8)))),
    "other size": (jpeg(IMAGE), png(LABEL[:12])),
    "undefined ids": (jpeg(IMAGE), png(np.full((24, 32), 77, np.uint8))),
}


def make_records(root: Path, count: int, broken: list[str]) -> list[dict[str, Any]]:
    """count records, of which the first are ``broken``; the good ones share two files."""
    (root / "good.jpg").write_bytes(jpeg(IMAGE))
    (root / "good.png").write_bytes(png(LABEL))
    good = {"file_name": str(root / "good.jpg"), "sem_seg_file_name": str(root / "good.png"), "dataset": "d"}
    records = [good | {"image_id": str(index)} for index in range(count)]
    for index, name in enumerate(broken):
        files = {"file_name": root / f"{name}.jpg", "sem_seg_file_name": root / f"{name}.png"}
        for path, content in zip(files.values(), BROKEN[name]):
            if content is not None:
                path.write_bytes(content)
        records[index] |= {key: str(path) for key, path in files.items()}
    return records


def make_loader(records: list[dict[str, Any]], workers: int) -> Any:
    mapper = SemanticMapper(is_train=True, label_spaces={"d": CITYSCAPES}, min_sizes=(24,), max_size=64)
    return loaders._loader(records, mapper, loaders.StepSampler([range(len(records))], [20], 5), workers)


def test_each_of_ten_kinds_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = make_records(tmp_path, 200, list(BROKEN))
    counter = BadSamples(len(records), 0.05)
    with caplog.at_level(logging.WARNING):
        for batch in itertools.islice(make_loader(records, 0), 20):  # twice all images
            counter.note(batch)
            assert len(batch) == 20 and all("good" in sample["file_name"] for sample in batch)
            assert not any("bad_samples" in sample for sample in batch)
    assert {Path(name).stem for name in counter.reasons} == set(BROKEN)
    assert len(caplog.records) == 10
    for name in BROKEN:
        assert sum(f"{name}." in record.getMessage() for record in caplog.records) == 1


def test_replacements_do_not_depend_on_loader_processes(tmp_path: Path) -> None:
    records = make_records(tmp_path, 30, list(BROKEN))
    served = []
    for workers in (0, 2):
        batches = itertools.islice(make_loader(records, workers), 6)
        served.append([(s["image_id"], s["seed"], s["image"].sum().item()) for batch in batches for s in batch])
    assert served[0] == served[1]


def test_a_replacement_is_of_the_same_domain(tmp_path: Path) -> None:
    records = make_records(tmp_path, 20, ["text"])
    sampler = loaders.StepSampler([range(2), range(2, 20)], [2, 2], 1)
    data = loaders.MappedRecords(
        records, SemanticMapper(is_train=True, label_spaces={"d": CITYSCAPES}, min_sizes=(24,), max_size=64)
    )
    assert data.images == 2  # each file once, in however many groups it is
    draws = [draw for step in range(4) for draw in sampler.batch(step) if draw.index == 0]
    assert draws
    assert {data[draw]["image_id"] for draw in draws} == {"1"}


def test_too_many_end_the_run(tmp_path: Path) -> None:
    records = make_records(tmp_path, 100, list(BROKEN)[:6])
    counter = BadSamples(len(records), 0.05)
    with pytest.raises(DataError) as error:
        for batch in itertools.islice(make_loader(records, 0), 10):
            counter.note(batch)
    assert error.value.key == "DATALOADER.MAX_BAD_FRACTION" and "6 of 100" in str(error.value)


def test_nothing_but_bad_images_is_one_line(tmp_path: Path) -> None:
    records = make_records(tmp_path, 1, ["text"])
    with pytest.raises(DataError, match="text.jpg"):
        next(iter(make_loader(records, 0)))


def test_mistakes_of_the_code_are_not_taken_for_bad_images() -> None:
    def wrong(record: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("a mistake")

    data = loaders.MappedRecords([{"file_name": "x"}], wrong)
    with pytest.raises(KeyError):
        data[loaders.Draw(0, 1, range(1))]


@pytest.mark.slow
def test_a_stage_goes_on_and_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(make_scenes(tmp_path / "scenes")))
    image = next((tmp_path / "scenes").glob("cityscapes/leftImg8bit/train/*/*.png"))
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DataError, match="1 of 6 .*truncated"):
        run_stage(small_cfg("source", tmp_path / "strict", SOLVER__MAX_ITER=2))
    cfg = small_cfg("source", tmp_path / "run", SOLVER__MAX_ITER=2, DATALOADER__MAX_BAD_FRACTION=0.2)
    run_stage(cfg)
    assert "1 of 6 training images" in (tmp_path / "run" / "log.txt").read_text()
    assert str(image) in json.loads((tmp_path / "run" / "bad_samples.json").read_text())


def damage_after(steps: int, images: Sequence[Path], patch: pytest.MonkeyPatch) -> None:
    """Damage images after this number of steps of a run."""
    update, calls = TrainingStep.update, itertools.count(1)

    def updating(self: TrainingStep) -> None:
        update(self)
        if next(calls) == steps:
            for image in images:
                image.write_bytes(b"xx")

    patch.setattr(TrainingStep, "update", updating)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [1, 6])
def test_a_run_that_they_end_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: int) -> None:
    """One is more than the allowed fraction; with all six there is no batch. They are repaired before resuming."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(make_scenes(tmp_path / "scenes")))
    images = sorted((tmp_path / "scenes").glob("cityscapes/leftImg8bit/train/*/*.png"))[:damaged]
    whole = [image.read_bytes() for image in images]
    changes = {"SOLVER__MAX_ITER": 6, "SOLVER__CHECKPOINT_PERIOD": 100}
    run_stage(small_cfg("source", tmp_path / "straight", **changes))
    with monkeypatch.context() as patch, pytest.raises(DataError):
        damage_after(2, images, patch)
        run_stage(small_cfg("source", tmp_path / "run", **changes))
    (checkpoint,) = (tmp_path / "run").glob("model_*.pth")
    assert contents(checkpoint)["/trainer/iteration"] >= 1
    if damaged == 1:
        assert json.loads((tmp_path / "run" / "bad_samples.json").read_text()).keys() == {str(images[0])}
    for image, content in zip(images, whole, strict=True):
        image.write_bytes(content)
    run_stage(small_cfg("source", tmp_path / "run", **changes), resume=True)
    assert not differences(*(tmp_path / name / "model_final.pth" for name in ("straight", "run")))


@pytest.mark.slow
def test_a_run_that_is_stopped_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(make_scenes(tmp_path / "scenes")))
    image = next((tmp_path / "scenes").glob("cityscapes/leftImg8bit/train/*/*.png"))
    note = BadSamples.note

    def stop(self: BadSamples, batch: Any) -> None:
        note(self, batch)
        if self.reasons:
            os.kill(os.getpid(), signal.SIGTERM)

    damage_after(1, [image], monkeypatch)
    monkeypatch.setattr(BadSamples, "note", stop)
    with pytest.raises(SystemExit):
        run_stage(small_cfg("source", tmp_path / "run", SOLVER__MAX_ITER=20, DATALOADER__MAX_BAD_FRACTION=0.2))
    assert json.loads((tmp_path / "run" / "bad_samples.json").read_text()).keys() == {str(image)}


@pytest.mark.slow
def test_an_image_that_may_not_be_opened_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of another user, or on a failing disk; also by the checks before training."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(make_scenes(tmp_path / "scenes")))
    image = min((tmp_path / "scenes").glob("cityscapes/leftImg8bit/train/*/*.png"))

    def refusing(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file) == str(image):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return open_file(file, *arguments, **options)

    open_file = builtins.open
    for module in (builtins, io):
        monkeypatch.setattr(module, "open", refusing)
    changes = {"SOLVER__MAX_ITER": 2, "DATALOADER__MAX_BAD_FRACTION": 0.2}
    run_stage(small_cfg("source", tmp_path / "run", **changes))
    assert json.loads((tmp_path / "run" / "bad_samples.json").read_text()).keys() == {str(image)}


@pytest.mark.slow
def test_transferability_is_made_of_the_images_that_can_be_read(tmp_path: Path, start: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(make_scenes(tmp_path / "scenes")))
    image = next((tmp_path / "scenes").glob("bdd100k/images/10k/train/*.jpg"))
    image.write_bytes(image.read_bytes()[:100])
    changes = {"TRANSFER__MAP_CACHE": str(tmp_path / "maps"), "DATALOADER__MAX_BAD_FRACTION": 0.2}
    run_stage(small_cfg("tmt", tmp_path / "run", start, **changes))
    assert len(list((tmp_path / "maps").rglob("*.npz"))) == 5
    assert str(image) in json.loads((tmp_path / "run" / "bad_samples.json").read_text())


@pytest.mark.slow
def test_a_broken_evaluation_image_ends_the_run_before_training_or_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(make_scenes(tmp_path / "scenes")))
    (image,) = (tmp_path / "scenes").glob("bdd100k/images/10k/val/*.jpg")
    whole = image.read_bytes()
    changes = {"SOLVER__CHECKPOINT_PERIOD": 100, "TEST__EVAL_PERIOD": 2}
    image.write_bytes(b"xx")
    with pytest.raises(DataError, match=image.name):
        run_stage(small_cfg("source", tmp_path / "run", **changes))
    assert not list((tmp_path / "run").glob("*.pth"))
    image.write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")  # its header is whole
    with pytest.raises(DataError, match=image.name):
        run_stage(small_cfg("source", tmp_path / "run", **changes))
    assert [path.name for path in (tmp_path / "run").glob("model_*.pth")] == ["model_0000001.pth"]


@pytest.mark.slow
def test_labels_without_a_class_are_refused_before_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(make_scenes(tmp_path / "scenes")))
    labels = sorted((tmp_path / "scenes").glob("cityscapes/gtFine/train/*/*_labelIds.png"))
    for label in labels[1:]:
        label.write_bytes(png(np.zeros((64, 128), np.uint8)))
    check = registration.check_has_classes
    check("DATASETS.TRAIN", registration.records_of(["cityscapes_sem_seg_train"]))
    labels[0].write_bytes(png(np.zeros((64, 128), np.uint8)))
    with pytest.raises(DataError, match="cityscapes_sem_seg_train"):
        run_stage(small_cfg("source", tmp_path / "run"))
