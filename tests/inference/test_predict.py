"""Many pictures to files: from a folder, a list, a split or a video; what is there is skipped, what is broken named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from tests.helpers.models import tiny_cfg
from tmt_d2.cli import predict
from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.datasets.mapillary import MAPILLARY_A
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.data.reader import DataError
from tmt_d2.errors import UserError
from tmt_d2.inference import Predictor
from tmt_d2.inference.folder import ids_table, predictions, write_classes
from tmt_d2.inference.images import find_images

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
    (tmp_path / "photos" / "notes.md").write_text("no picture")
    return tmp_path / "photos"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 40))
    for shade in (0, 100, 200):
        writer.write(np.full((40, 64, 3), (0, 0, shade), np.uint8))  # BGR: red
    writer.release()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("model")
    cfg = tiny_cfg(MODEL__META_ARCHITECTURE="TransferableMaskFormer", INPUT__MIN_SIZE_TEST=0)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "model.yaml").write_text(cfg.dump())
    return str(folder / "model.yaml"), str(folder / "model.pth")


@pytest.fixture
def split(photos: Path) -> Iterator[str]:
    files = [{"file_name": str(photos / name), "dataset": "photos_val"} for name in SIZES]
    register_split("photos_val", lambda: files, TRAIN_IDS)
    yield "photos_val"
    DatasetCatalog.remove("photos_val")
    MetadataCatalog.remove("photos_val")


def run(model: tuple[str, str], place: Any, output: Path, *more: str) -> int:
    return predict.main(
        ["--config-file", model[0], "--weights", model[1], "--input", str(place), "--output", str(output), *more]
    )


def test_places(photos: Path, video: Path, split: str, tmp_path: Path) -> None:
    names = ["a/1", "a/2", "b/1"]
    folder = find_images(str(photos))
    assert [picture.name for picture in folder] == names and (len(folder), folder.left_out) == (3, 1)
    assert [picture.name for picture in find_images(split)] == names
    (tmp_path / "some.txt").write_text("photos/b/1.png\n\nphotos/a/2.png\nphotos/b/1.png\nphotos/gone.png\n")
    listed = list(find_images(str(tmp_path / "some.txt")))
    assert [picture.name for picture in listed] == ["b/1", "a/2", "gone"]  # each once
    assert listed[0].read("RGB").shape == (33, 50, 3)
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        listed[2].read("RGB")
    frames = find_images(str(video))
    assert len(frames) == 3 and [picture.name for picture in frames] == ["000000", "000001", "000002"]
    colours = [picture.read("RGB").mean((0, 1)) for picture in frames]
    assert [round(red / 100) for red, _, _ in colours] == [0, 1, 2] and colours[2][2] < 20
    write(photos / "a/1.jpg", 40, 64)
    assert [picture.name for picture in find_images(str(photos / "a"))] == ["1.jpg", "1.png", "2"]


def test_places_without_a_picture(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "cut.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="this folder has no image"):
        find_images(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="none.txt"):
        find_images(str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="cannot be decoded as a video"):
        find_images(str(tmp_path / "cut.mp4"))
    with pytest.raises(FileNotFoundError, match="no such image, folder, list, video or registered split"):
        find_images(str(tmp_path / "nowhere"))


def test_batches_are_of_one_size_and_the_answers_those_of_one_by_one(
    model: tuple[str, str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_config(*model)
    alone = [predictor(picture.read("RGB")).labels for picture in find_images(str(photos))]
    sizes, batch = [], Predictor.batch
    monkeypatch.setattr(Predictor, "batch", lambda self, images, size: sizes.append(len(images)) or batch(self, images))
    results = list(predictions(predictor, find_images(str(photos))))
    assert sizes == [2, 1]
    assert all(torch.equal(result.labels, labels) for (_, _, result), labels in zip(results, alone))
    monkeypatch.setattr("tmt_d2.inference.folder.MAX_SCORE_PIXELS", 40 * 64)
    list(predictions(predictor, find_images(str(photos))))
    assert sizes == [2, 1, 1, 1, 1]  # memory is bounded whatever --batch-size is


def test_files_and_going_on(
    model: tuple[str, str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    kinds = ("labels", "overlays", "confidence", "transferability")
    assert run(model, photos, output, "--write", *kinds, "--ids", "cityscapes") == 0
    told = capsys.readouterr().out
    assert f"{photos}: 3 images, 1 other" in told and "3 images predicted\n" in told
    classes = json.loads((output / "classes.json").read_text())["classes"]
    assert len(classes) == 19 and classes[0] == {"id": 7, "name": "road", "color": [128, 64, 128]}
    predictor = Predictor.from_config(*model)
    for name, size in SIZES.items():
        prediction = predictor(photos / name)
        read = {kind: cv2.imread(str(output / kind / name), cv2.IMREAD_UNCHANGED) for kind in kinds}
        assert np.array_equal(read["labels"], ids_table(CITYSCAPES)[prediction.labels.numpy()])
        assert read["overlays"].shape == (*size, 3)
        share = prediction.scores.max(0).values / prediction.scores.sum(0)
        assert np.abs(read["confidence"] / 255 - share.numpy()).max() < 0.01
        assert np.abs(read["transferability"] / 255 - prediction.transferability.mean(0).numpy()).max() < 0.01

    kept = output / "labels" / "a/1.png"
    before, cut = kept.stat().st_mtime_ns, output / "overlays" / "b/1.png"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-5])
    assert run(model, photos, output, "--write", *kinds, "--ids", "cityscapes") == 0
    assert "1 images predicted, 2 already present" in capsys.readouterr().out
    assert cut.read_bytes() == whole and kept.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="--ids"):
        run(model, photos, output)
    with pytest.raises(UserError, match="INPUT or TEST settings"):
        run(model, photos, output, "--ids", "cityscapes", "INPUT.MIN_SIZE_TEST", "32")


def test_broken_pictures_are_named_and_the_others_predicted(
    model: tuple[str, str], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photos / "a" / "2.png").write_bytes((photos / "a" / "2.png").read_bytes()[:60])
    assert run(model, photos, tmp_path / "out") == 1
    told = "".join(capfd.readouterr())
    assert "2 images predicted, 1 unreadable" in told and "left out: " in told and "a/2.png: " in told
    assert sorted(path.name for path in (tmp_path / "out" / "labels").rglob("*.png")) == ["1.png", "1.png"]


def test_a_video_and_one_that_ends_early(
    model: tuple[str, str], video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(model, video, tmp_path / "out", "--write", "labels") == 0
    assert len(list((tmp_path / "out" / "labels").glob("00000?.png"))) == 3
    broken = tmp_path / "cut.avi"
    data = video.read_bytes()
    broken.write_bytes(data[: data.rfind(b"00dc", 0, data.rfind(b"idx1")) - 40])
    # The header's count is a guess in many containers: the frames that are there are no error
    warnings: list[str] = []
    monkeypatch.setattr("tmt_d2.inference.images.logger.warning", lambda text, *args: warnings.append(text % args))
    assert 0 < len([frame.read("RGB") for frame in find_images(str(broken))]) < 3
    assert "cut.avi" in "".join(warnings)


def test_classes_are_named_beside_the_labels(tmp_path: Path) -> None:
    classes = ClassList(("lawn", "pond"), ((1, 2, 3), (4, 5, 6)))
    lawn, pond = {"id": 0, "name": "lawn", "color": [1, 2, 3]}, {"id": 1, "name": "pond", "color": [4, 5, 6]}
    write_classes(tmp_path, classes)
    assert json.loads((tmp_path / "classes.json").read_text()) == {"classes": [lawn, pond]}
    table = np.full(256, 255, np.uint8)
    table[1] = 20  # the data set has no lawn
    write_classes(tmp_path, classes, table)
    assert json.loads((tmp_path / "classes.json").read_text()) == {"classes": [pond | {"id": 20}]}


def test_own_ids_are_those_of_the_label_files() -> None:
    table = ids_table(CITYSCAPES)
    assert (table[0], table[13], table[18], table[255]) == (7, 26, 33, 255)
    with pytest.raises(UserError, match="sidewalk"):
        ids_table(MAPILLARY_A)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch-size", "0"), "--batch-size"),
        (("MODEL.META_ARCHITECTURE", "MaskFormer", "--write", "transferability"), "--write transferability"),
    ],
)
def test_wrong_arguments(
    more: tuple[str, ...], message: str, model: tuple[str, str], photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(model, photos, tmp_path / "out", *more)
    with pytest.raises(UserError, match="--output"):
        run(model, photos, photos / "out")


def test_files_of_others_are_neither_overwritten_nor_taken_for_predictions(
    model: tuple[str, str], photos: Path, tmp_path: Path
) -> None:
    truth = tmp_path / "set" / "labels" / "a" / "1.png"
    truth.parent.mkdir(parents=True)
    truth.write_bytes(b"ground truth")
    with pytest.raises(UserError, match="--output"):
        run(model, photos, tmp_path / "set")
    assert truth.read_bytes() == b"ground truth" and not (tmp_path / "set" / "predictions.json").exists()


def test_what_was_predicted_of_other_pictures_or_by_another_model_does_not_stay(
    model: tuple[str, str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    run(model, photos, output, "--write", "labels")
    with pytest.raises(UserError, match="MODEL settings"):
        run(model, photos, output, "--write", "labels", "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]")
    made = output / "labels" / "a" / "1.png"
    os.utime(photos / "a" / "1.png", ns=(made.stat().st_mtime_ns + 10**9,) * 2)  # the picture was replaced since
    capsys.readouterr()
    run(model, photos, output, "--write", "labels")
    assert "1 images predicted, 2 already present" in capsys.readouterr().out
    place = tmp_path / "list.txt"
    for folder in ("a", "b"):
        place.write_text(f"# one picture\n{photos / folder / '1.png'}\n")
        if folder == "a":
            run(model, place, tmp_path / "listed")
        else:
            with pytest.raises(UserError, match="common folder"):
                run(model, place, tmp_path / "listed")


def test_no_two_pictures_have_one_name(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.png.jpg"):
        write(tmp_path / name, 8, 8)
    names = [picture.name for picture in find_images(str(tmp_path))]
    assert len({*names}) == 3


def test_names_that_are_too_long_with_another_suffix(model: tuple[str, str], tmp_path: Path) -> None:
    """Two images that differ in their suffix alone keep it, and ``.png`` behind it would be 256 bytes and more."""
    for name in ("n" * 248 + ".png", "n" * 248 + ".jpg", "n" * 245 + "a.png", "b.png"):
        write(tmp_path / "photos" / name, 32, 32)
    assert run(model, tmp_path / "photos", tmp_path / "out") == 0
    written = {path.name for path in (tmp_path / "out" / "labels").iterdir()}
    assert len(written) == 4 and written > {"n" * 245 + "a.png", "b.png"}
    assert written == {path.name for path in (tmp_path / "out" / "overlays").iterdir()}
    assert run(model, tmp_path / "photos", tmp_path / "out") == 0  # all are there
