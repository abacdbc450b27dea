"""The command: its files, resuming, models without an estimator, and inputs of all kinds."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.helpers import custom_data
from tests.helpers.errors import refuses
from tmt_d2.cli import estimate
from tmt_d2.errors import UserError
from tmt_d2.estimation import estimators
from tmt_d2.estimation.collect import Collector
from tmt_d2.inference.images import find_images

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]

SOURCE = "cityscapes_sem_seg_val"
TARGET = "bdd100k_sem_seg_train"
Run = Callable[..., int]


@pytest.fixture
def run(model_files: Path, tmp_path: Path) -> Run:
    """run(*words, model="tmt", place=TARGET, source=SOURCE, output="out") -> exit status of the command."""

    def run(*words: str, model: str = "tmt", place: Any = TARGET, source: str = SOURCE, output: str = "out") -> int:
        options = {"--source": source, "--input": str(place), "--output": str(tmp_path / output)}
        if "--weights" not in words:
            options["--weights"] = str(model_files / f"{model}.pth")
        chosen = [word for option, value in options.items() if value for word in (option, value)]
        return estimate.main(["--config-file", str(model_files / f"{model}.yaml"), *words, *chosen])

    return run


@pytest.fixture
def photos(scenes: Path, tmp_path: Path) -> Path:
    """A folder of three images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in sorted((scenes / "bdd100k").rglob("images/**/train/*.jpg"))[:3]:
        shutil.copy(file, folder)
    return folder


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "estimate.json").read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open() as file:
        return list(csv.DictReader(file))


def test_files_of_an_estimate(run: Run, tmp_path: Path) -> None:
    assert run("TRANSFER.METHOD", "estimator") == 0
    out = tmp_path / "out"
    estimated = result(out)
    low, high = estimated["interval"]
    assert estimated["estimator"] == "transferability" and estimated["images"] == 6
    assert low <= estimated["mIoU"] <= high and estimated["mIoU"] == estimated["metrics"]["mIoU"]
    assert estimated["warnings"]  # six images are few
    listed = rows(out)
    accuracies = [float(row["estimated accuracy"]) for row in listed]
    assert len(listed) == 6 and accuracies == sorted(accuracies) and accuracies[0] > 0
    assert all(0 < float(row["transferability"]) < 1 and Path(row["file"]).is_file() for row in listed)
    assert cv2.imread(str(out / "worst.png")) is not None
    assert len(json.loads((out / "calibration.json").read_text())["temperatures"]) == 19
    assert not list(out.rglob(".*.tmp"))


def test_without_a_source_there_is_no_number(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source="") == 0
    assert "InfoMax" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pool"}


def test_comparison_with_labels(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--compare") == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in ("source-validation", "confidence", "transferability"))
    with refuses("--compare"):
        run("--compare", source="")


def test_the_estimator_follows_from_the_training(run: Run, tmp_path: Path) -> None:
    """Confidence alone after training on the target; amplified for a source model without discriminators."""
    assert (
        run()
        == run(model="full", output="full")
        == run("TRANSFER.METHOD", "source", model="full", output="source")
        == 0
    )
    out = tmp_path / "out"
    names = [result(tmp_path / name)["estimator"] for name in ("out", "full", "source")]
    assert names == ["confidence", "confidence", "amplified-confidence"]
    assert {row["transferability"] for row in rows(tmp_path / "full")} == {""}
    assert {row["transferability"] for row in rows(out)} != {""}


def test_several_models_are_ranked(
    run: Run, model_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(model_files / "tmt.pth")
    for name, factor in (("first", 1.0), ("second", 0.1)):
        (tmp_path / name / "full").mkdir(parents=True)
        scaled = {key: factor * value if "class_embed" in key else value for key, value in state["model"].items()}
        torch.save({"model": scaled}, tmp_path / name / "full" / "model.pth")
    weights = [str(tmp_path / name / "full" / "model.pth") for name in ("first", "second")]
    assert run("--weights", *weights) == 0
    folders = ["first-full-model", "second-full-model"]
    printed = capsys.readouterr().out
    values = {name: result(tmp_path / "out" / name)["mIoU"] for name in folders}
    assert values[folders[0]] != values[folders[1]]
    assert sorted(folders, key=printed.index) == sorted(folders, key=lambda name: -values[name])
    with refuses("--weights"):
        run("--weights", weights[0], weights[0])


def test_weights_of_the_config(run: Run, model_files: Path, tmp_path: Path) -> None:
    file = tmp_path / "with_weights.yaml"
    file.write_text(f"_BASE_: {model_files / 'tmt.yaml'}\nMODEL:\n  WEIGHTS: {model_files / 'tmt.pth'}\n")
    words = ["--config-file", str(file), "--input", TARGET, "--output", str(tmp_path / "out")]
    assert estimate.main(words) == 0


def test_resuming_and_refusing(
    run: Run, photos: Path, model_files: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = shutil.copy(model_files / "tmt.pth", tmp_path / "model.pth")
    again = ("--weights", str(weights))
    assert run(*again, place=photos) == 0
    before = result(tmp_path / "out")

    def unexpected(*_: Any, **__: Any) -> Any:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(estimate.Measurement, "__call__", unexpected)
        assert run(*again, place=photos) == 0
    assert result(tmp_path / "out") == before

    pool = str(tmp_path / "out" / "pool")
    monkeypatch.setattr(Collector, "of_records", unexpected)  # refused before the source is predicted
    for words, source in (
        ((), "cityscapes_sem_seg_train"),
        ((), ""),
        (("TEST.AUG.ENABLED", "True"), SOURCE),
        (("TEST.SLIDING_WINDOW.ENABLED", "True"), SOURCE),
        (("TEST.PRECISION", "bfloat16"), SOURCE),
        (("INPUT.MIN_SIZE_TEST", "48"), SOURCE),
    ):
        with refuses(pool):
            run(*words, *again, place=photos, source=source)
    with refuses(pool):
        run(*again, place=TARGET)
    with monkeypatch.context() as patch, refuses(pool):  # a pool of an earlier version
        patch.setattr(estimators, "VERSION", 0)
        run(*again, place=photos)
    for changed in (weights, next((scenes / "cityscapes" / "gtFine" / "val").rglob("*_labelIds.png"))):
        stat = os.stat(changed)
        os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        with refuses(pool):
            run(*again, place=photos)
        os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert result(tmp_path / "out") == before


def test_hostile_images(run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sorted(photos.iterdir())[0]
    assert run(place=first, output="one") == 0
    assert result(tmp_path / "one")["images"] == 1
    cv2.imwrite(str(photos / "black.png"), np.zeros((33, 50, 3), np.uint8))
    cv2.imwrite(str(photos / "line.png"), np.full((33, 1, 3), 255, np.uint8))
    (photos / "broken.png").write_bytes(b"no image")
    assert run(place=photos) == 1
    assert "broken" in capsys.readouterr().out
    assert result(tmp_path / "out")["images"] == 5
    assert {"black", "line"} < {row["image"] for row in rows(tmp_path / "out")}


def test_a_video_has_the_frames_of_its_images(run: Run, photos: Path, tmp_path: Path) -> None:
    """Frames are read in their turn: afterwards only the last one could be."""
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 64))
    for file in sorted(photos.iterdir()):
        writer.write(cv2.imread(str(file)))
    writer.release()
    (tmp_path / "frames").mkdir()
    for image in find_images(str(path)):
        cv2.imwrite(str(tmp_path / "frames" / f"{image.name}.png"), image.read("BGR"))
    assert run(place=path, output="video") == run(place=tmp_path / "frames", output="images") == 0
    frames, images = (
        [{key: value for key, value in row.items() if key != "file"} for row in rows(tmp_path / name)]
        for name in ("video", "images")
    )
    assert frames == images and len({row["confidence"] for row in frames}) == 3


@pytest.mark.usefixtures("clean_catalogs")
def test_a_source_with_other_classes(run: Run, tmp_path: Path) -> None:
    data = custom_data.write(tmp_path / "town", classes=["lawn", "pond"], train_ids={7: "lawn", 8: "pond"})
    for stem in "ab":
        custom_data.save(tmp_path / "town" / "ids" / f"{stem}_ids.png", [[7, 8]])
        (tmp_path / "town" / "rgb").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "town" / "rgb" / f"{stem}.png"), np.zeros((1, 2, 3), np.uint8))
    with refuses("town_sem_seg_train"):
        run("DATASETS.CUSTOM", f"['{data}']", source="town_sem_seg_train")
    with refuses("town_sem_seg_train"):
        run("--compare", "DATASETS.CUSTOM", f"['{data}']", place="town_sem_seg_train")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_wrong_arguments(run: Run, model_files: Path, photos: Path, tmp_path: Path) -> None:
    weights = str(model_files / "tmt.pth")
    plain = str(model_files / "full.pth")
    for error, options in (
        (FileNotFoundError, {"words": ("--weights", str(tmp_path / "none.pth"))}),
        (FileNotFoundError, {"words": ("--weights", weights, str(tmp_path / "none.pth"))}),
        (FileNotFoundError, {"place": tmp_path / "nowhere"}),
        (UserError, {"words": ("--weights", plain)}),  # MODEL.META_ARCHITECTURE has an estimator, the file has none
        (UserError, {"source": "cityscapes_sem_seg_vla"}),
        (UserError, {"output": f"{photos.name}/out"}),
    ):
        arguments = dict(options)
        with pytest.raises(error):
            run(*arguments.pop("words", ()), **{"place": photos, **arguments})
        assert not (tmp_path / "out").exists() and len(list(photos.iterdir())) == 3
    (tmp_path / "out").write_text("a file")
    with refuses("--output"):
        run(place=photos)
