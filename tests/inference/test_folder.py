"""Prediction of many images to files; complete files are skipped, unreadable images are named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.errors import refuses
from tmt_d2.cli import predict
from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.data.datasets.mapillary import MAPILLARY_A
from tmt_d2.errors import UserError
from tmt_d2.inference import Predictor
from tmt_d2.inference.choices import KINDS
from tmt_d2.inference.folder import ids_table, predict_images, predictions, write_classes
from tmt_d2.inference.images import find_images
from tmt_d2.utils.lock import folder_lock

pytestmark = pytest.mark.slow

SIZES = {"a/1.png": (40, 64), "a/2.png": (40, 64), "b/1.png": (33, 50)}


def write(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, (name, size) in enumerate(SIZES.items()):
        write(tmp_path / "photos" / name, *size, seed)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def predictor(model_files: Path) -> Predictor:
    return Predictor.from_config(str(model_files / "tmt.yaml"), str(model_files / "tmt.pth"))


@pytest.fixture
def run(model_files: Path) -> Any:
    """run(input, output, *words) -> exit status of the command."""

    def run(place: object, output: Path, *words: str) -> int:
        model = ["--config-file", str(model_files / "tmt.yaml"), "--weights", str(model_files / "tmt.pth")]
        return predict.main([*model, "--input", str(place), "--output", str(output), *words])

    return run


def test_batches_have_one_size_and_equal_single_predictions(
    predictor: Predictor, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = find_images(str(photos))
    alone = [predictor(image.read("RGB")).labels for image in images]
    sizes, batch = [], Predictor.batch
    monkeypatch.setattr(Predictor, "batch", lambda self, images, size: sizes.append(len(images)) or batch(self, images))
    results = list(predictions(predictor, images))
    assert sizes == [2, 1]
    assert all(torch.equal(result.labels, labels) for (_, _, result), labels in zip(results, alone))
    monkeypatch.setattr("tmt_d2.inference.folder.MAX_SCORE_PIXELS", 40 * 64)
    list(predictions(predictor, images))
    assert sizes == [2, 1, 1, 1, 1]  # memory is bounded whatever the batch size is


def test_files_and_resume(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    images, table, output = find_images(str(photos)), ids_table(CITYSCAPES), tmp_path / "out"
    outcome = predict_images(predictor, images, output, KINDS, table)
    assert (outcome.predicted, outcome.present, outcome.broken) == (3, 0, {})
    for name, size in SIZES.items():
        prediction = predictor(photos / name)
        read = {kind: cv2.imread(str(output / kind / name), cv2.IMREAD_UNCHANGED) for kind in KINDS}
        assert np.array_equal(read["labels"], table[prediction.labels.numpy()])
        assert read["overlays"].shape == (*size, 3)
        share = prediction.scores.max(0).values / prediction.scores.sum(0)
        assert np.abs(read["confidence"] / 255 - share.numpy()).max() < 0.01
        assert np.abs(read["transferability"] / 255 - prediction.transferability.mean(0).numpy()).max() < 0.01

    kept, cut, outdated = output / "labels" / "a/1.png", output / "overlays" / "b/1.png", photos / "a/2.png"
    before, whole = kept.stat().st_mtime_ns, cut.read_bytes()
    cut.write_bytes(whole[:-5])
    os.utime(outdated, ns=(before + 10**10,) * 2)
    outcome = predict_images(predictor, images, output, KINDS, table)
    assert (outcome.predicted, outcome.present) == (2, 1)
    assert cut.read_bytes() == whole and kept.stat().st_mtime_ns == before


def test_the_command_refuses_other_predictions(run: Any, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(photos, output, "--write", "labels", "--ids", "cityscapes") == 0
    classes = json.loads((output / "classes.json").read_text())["classes"]
    assert len(classes) == 19 and classes[0] == {"id": 7, "name": "road", "color": [128, 64, 128]}
    ids = ("--ids", "cityscapes")
    for words, different in (
        ((), {"--ids"}),
        ((*ids, "INPUT.MIN_SIZE_TEST", "32"), {"INPUT or TEST settings"}),
        ((*ids, "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"), {"MODEL settings"}),
        (("MODEL.TMT.P_T", "0.1"), {"--ids", "MODEL.TMT", "MODEL settings"}),
    ):
        with pytest.raises(UserError) as error:
            run(photos, output, *words)
        facts = json.loads((output / "predictions.json").read_text())
        assert error.value.key == str(output)
        assert {fact for fact in facts if f"'{fact}'" in error.value.message} == different
    place = tmp_path / "list.txt"
    place.write_text(f"# one image\n{photos / 'a/1.png'}\n")
    assert run(place, tmp_path / "listed", "--write", "labels") == 0
    place.write_text(f"{photos / 'b/1.png'}\n")
    with pytest.raises(UserError, match="common folder"):
        run(place, tmp_path / "listed")


def test_t_that_does_not_act_is_written_where_asked(run: Any, photos: Path, tmp_path: Path) -> None:
    quick = ("MODEL.TMT.TEST_ATTENTION", "False")
    assert run(photos, tmp_path / "tmt", "--write", "transferability") == 0
    assert run(photos, tmp_path / "quick", *quick, "--write", "labels") == 0
    assert run(photos, tmp_path / "quick", *quick, "--write", "transferability") == 0  # the same settings: not refused
    for name in SIZES:
        maps = [cv2.imread(str(tmp_path / place / "transferability" / name), -1) for place in ("tmt", "quick")]
        assert np.array_equal(*maps)


def test_a_folder_in_use_is_not_claimed(run: Any, photos: Path, tmp_path: Path) -> None:
    """Two first runs with other settings would both find no record of the origin."""
    with folder_lock(tmp_path / "out", "--output"), pytest.raises(UserError) as error:
        run(photos, tmp_path / "out")
    assert error.value.key == "--output" and not (tmp_path / "out" / "predictions.json").exists()


def test_unreadable_images_are_named(run: Any, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (photos / "a" / "2.png").write_bytes((photos / "a" / "2.png").read_bytes()[:60])
    assert run(photos, tmp_path / "out") == 1
    assert str(photos / "a/2.png") in "".join(capfd.readouterr())
    labels = tmp_path / "out" / "labels"
    assert sorted(str(path.relative_to(labels)) for path in labels.rglob("*.png")) == ["a/1.png", "b/1.png"]


def test_classes_of_label_files(tmp_path: Path) -> None:
    classes = ClassList(("lawn", "pond"), ((1, 2, 3), (4, 5, 6)))
    lawn, pond = {"id": 0, "name": "lawn", "color": [1, 2, 3]}, {"id": 1, "name": "pond", "color": [4, 5, 6]}
    write_classes(tmp_path, classes)
    assert json.loads((tmp_path / "classes.json").read_text()) == {"classes": [lawn, pond]}
    table = np.full(256, 255, np.uint8)
    table[1] = 20  # the data set has no lawn
    write_classes(tmp_path, classes, table)
    assert json.loads((tmp_path / "classes.json").read_text()) == {"classes": [pond | {"id": 20}]}


def test_ids_of_label_files() -> None:
    table = ids_table(CITYSCAPES)
    assert (table[0], table[13], table[18], table[255]) == (7, 26, 33, 255)
    with refuses("--ids"):
        ids_table(MAPILLARY_A)  # two of its ids are sidewalks


def test_wrong_arguments(run: Any, photos: Path, tmp_path: Path) -> None:
    for words, option in (
        (("--batch-size", "0"), "--batch-size"),
        (("MODEL.META_ARCHITECTURE", "MaskFormer", "--write", "transferability"), "--write"),
    ):
        with pytest.raises(UserError, match=option):
            run(photos, tmp_path / "out", *words)


def test_files_of_other_programs_are_not_overwritten(run: Any, photos: Path, tmp_path: Path) -> None:
    truth = tmp_path / "set" / "labels" / "a" / "1.png"
    truth.parent.mkdir(parents=True)
    truth.write_bytes(b"ground truth")
    with pytest.raises(UserError, match="--output"):
        run(photos, tmp_path / "set")
    assert truth.read_bytes() == b"ground truth" and not (tmp_path / "set" / "predictions.json").exists()


def test_names_too_long_for_another_suffix(predictor: Predictor, tmp_path: Path) -> None:
    """Two images that differ in their suffix alone keep it, and ``.png`` appended would exceed 255 bytes."""
    for name in ("n" * 248 + ".png", "n" * 248 + ".jpg", "n" * 245 + "a.png", "b.png"):
        write(tmp_path / "photos" / name, 32, 32)
    images = find_images(str(tmp_path / "photos"))
    assert predict_images(predictor, images, tmp_path / "out").predicted == 4
    written = {path.name for path in (tmp_path / "out" / "labels").iterdir()}
    assert len(written) == 4 and written > {"n" * 245 + "a.png", "b.png"}
    assert written == {path.name for path in (tmp_path / "out" / "overlays").iterdir()}
    assert predict_images(predictor, images, tmp_path / "out").present == 4
