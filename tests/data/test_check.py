"""The check of data sets: counts and problems, and that it leaves the files as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from tests.helpers.custom_data import SPLITS, write
from tests.helpers.small_runs import exif
from tmt_d2.cli.check_data import main
from tmt_d2.data.check import SplitReport, check_split, splits_to_check
from tmt_d2.errors import UserError
from tmt_d2.projects.street_scenes.render import render


def save(path: Path, value: int = 7, size: tuple[int, int] = (8, 6)) -> None:
    """size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint8)).save(path)


def check(root: Path, name: str, quick: bool = False, subsets: bool = False) -> dict[str, SplitReport]:
    return {split.name: check_split(split, quick) for split in splits_to_check(name, str(root), subsets)}


def problems(report: SplitReport) -> dict[str, list[str]]:
    return {kind: messages for kind, messages in report.problems.items() if messages}


def state(root: Path) -> dict[str, tuple[int, int]]:
    files = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    return {path: (os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def mapillary(root: Path, split: str, stem: str, value: int = 13, size: tuple[int, int] = (8, 6)) -> None:
    save(root / "mapillary_vistas" / split / "images" / f"{stem}.jpg", 100)
    save(root / "mapillary_vistas" / split / "labels" / f"{stem}.png", value, size)


def test_rendered_data_sets_are_in_order(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    render(root, train=2, val=1, size=(32, 64), workers=1)
    before = state(root)
    file = root.parent / "report.json"
    assert main(["--root", str(root), "--json", str(file)]) == 0
    assert state(root) == before
    data_sets = json.loads(file.read_text())["data_sets"]
    assert set(data_sets) == {"cityscapes", "bdd100k", "mapillary", "gtav", "synthia"}
    for splits in data_sets.values():
        for split, report in splits.items():
            count = {"train": 2, "val": 1, "test": 0}[split]
            assert [report[key] for key in ("images", "pairs", "read", "expected")] == [count, count, count, None]
            assert report["problems"] == {}
    assert data_sets["cityscapes"]["train"]["sizes"] == {"64x32": 2}
    assert "cityscapes  train" in capsys.readouterr().out
    assert main(["--root", str(root), "--data-sets", "cityscapes"]) == 0
    (root / "gta5").rename(root / "elsewhere")
    assert main(["--root", str(root)]) == 0
    assert main(["--root", str(root), "--data-sets", "cityscapes", "gtav"]) == 1  # named, but not there


def test_nothing_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root)]) == 2
    assert "gta5" in capsys.readouterr().out


def test_every_problem_is_found_and_named(root: Path) -> None:
    for stem, value in (("good", 13), ("outside", 70), ("empty", 13), ("cut", 13), ("both", 99), ("alone", 13)):
        mapillary(root, "training", stem, value)
    mapillary(root, "training", "small", size=(4, 6))
    images, labels = (root / "mapillary_vistas/training" / kind for kind in ("images", "labels"))
    save(images / "large.jpg", 100, (20, 10))
    save(labels / "large.png", 13, (20, 10))
    (images / "empty.jpg").write_bytes(b"")
    for path in (labels / "cut.png", images / "both.jpg"):
        path.write_bytes(path.read_bytes()[:-20])
    (labels / "alone.png").rename(labels / "unused.png")
    before, reports = state(root), check(root, "mapillary")
    train = reports["train"]
    assert state(root) == before
    assert (train.images, train.expected, train.pairs, train.read) == (8, 18000, 7, 7)
    assert train.sizes == {(8, 6): 3, (20, 10): 1}
    assert "8 of 18000" in train.problems["missing"][0]
    expected = {
        "unlabeled": [images / "alone.jpg"],
        "unused": [labels / "unused.png"],
        "unreadable": [images / "both.jpg", labels / "cut.png", images / "empty.jpg"],
        "undefined ids": [labels / "both.png", labels / "outside.png"],
        "sizes": [images / "small.jpg"],
    }
    for kind, paths in expected.items():
        assert [str(path) in message for path, message in zip(paths, train.problems[kind], strict=True)] == [
            True
        ] * len(paths)
    assert all("v2.0" in message for message in train.problems["undefined ids"])
    assert "validation" in reports["val"].problems["missing"][0]


def test_quick_reads_a_sample_from_the_first_to_the_last(root: Path) -> None:
    for index in range(25):
        mapillary(root, "training", f"{index:02d}", value=120 if index in (0, 24) else 13)
    report = check(root, "mapillary", quick=True)["train"]
    assert (report.images, report.read, len(report.problems["undefined ids"])) == (25, 20, 2)
    assert check(root, "mapillary")["train"].read == 25


def test_images_with_an_orientation_are_counted_and_are_no_problem(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(root, ["mapillary"], train=5, val=1, size=(32, 64), workers=1)
    images = sorted((root / "mapillary_vistas/training/images").iterdir())
    for index, orientation in ((1, 3), (3, 6), (4, 8)):
        Image.open(images[index]).save(images[index], exif=exif(orientation))
    reports = check(root, "mapillary")
    assert not problems(reports["train"])
    assert reports["train"].oriented == [str(images[index]) for index in (1, 3, 4)] and not reports["val"].oriented
    assert main(["--root", str(root)]) == 0
    assert "3 of 5 images have an EXIF orientation" in capsys.readouterr().out


def test_the_frames_of_gtav(root: Path) -> None:
    for number in (1, 2, 15188):
        for kind in ("images", "labels"):
            save(root / "gta5" / kind / f"{number:05d}.png")
    reports = check(root, "gtav")
    assert set(reports) == {"train", "val", "test", "all"}
    assert "split.mat" in reports["train"].problems["missing"][0]
    assert (reports["all"].images, reports["all"].pairs, reports["all"].known_bad) == (3, 2, 1)

    columns = {"trainIds": [1, 15188, 24966], "valIds": [2], "testIds": []}
    savemat(root / "gta5" / "split.mat", {key: np.array(ids, np.uint16).reshape(-1, 1) for key, ids in columns.items()})
    reports = check(root, "gtav")
    assert set(reports) == {"train", "val", "test"} and reports["train"].known_bad == 1
    (message,) = reports["train"].problems["missing"]
    assert "2 of 12403" in message and "24966" in message


def test_percent_of_pixels_and_a_sheet(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "town"
    splits = {name: {"images": f"{name}/{{stem}}.png", "labels": f"{name}/ids/{{stem}}.png"} for name in ("a", "b")}
    classes = ["lawn", {"name": "shed", "color": [0, 90, 255]}, "pond"]
    for split in splits:
        for stem in "12":
            save(folder / split / f"{stem}.png", 100, (8, 4))
            save(folder / split / "ids" / f"{stem}.png", 255, (8, 4))
    label = np.full((4, 8), 255, np.uint8)
    label[:2], label[2, :4] = 1, 0
    Image.fromarray(label).save(folder / "a/ids/1.png")
    ids = {"train_ids": {0: "lawn", 1: "shed"}, "ignore_ids": [255]}
    file, sheet = str(write(folder, splits=splits, classes=classes, **ids)), tmp_path / "sheet.png"
    reports = check(root, file)
    assert reports["a"].percent_of_pixels() == {"lawn": 6.25, "shed": 25.0, "pond": 0, "(ignored)": 68.75}
    assert (reports["a"].labeled, problems(reports["a"])) == (1, {})
    assert reports["b"].percent_of_pixels()["(ignored)"] == 100
    assert (reports["b"].labeled, list(problems(reports["b"]))) == (0, ["no classes"])
    assert main(["--root", str(root), "--data-sets", file, "--sheet", str(sheet)]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lawn", "6.25", "0.00"] in rows and not any(row[:1] == ["pond"] for row in rows)  # no id leads to it
    assert len(set(Image.open(sheet).convert("RGB").getdata())) > 3
    for name in ("sheet.txt", "nowhere/sheet.png"):
        with pytest.raises((SystemExit, UserError)):
            main(["--root", str(root), "--data-sets", file, "--sheet", str(tmp_path / name)])


def test_a_custom_data_set_and_subsets(root: Path, tmp_path: Path) -> None:
    for stem in "abcd":
        save(root / "rgb" / f"{stem}.png")
    for stem in "abx":
        save(root / "ids" / f"{stem}_ids.png", 1)
    (tmp_path / "some.txt").write_text("a\nc\ny\n")
    (root / "rgb" / "d.png").write_bytes(b"")

    def report_of(**split: object) -> SplitReport:
        splits = {"train": SPLITS["train"] | split}
        file = write(tmp_path, root="root", splits=splits, classes=["lawn", "pond"], train_ids={1: "pond"})
        return check(root, str(file))["train"]

    report = report_of()
    assert set(problems(report)) == {"unlabeled", "unused"} and "no id leads to: lawn" in report.notes[0]
    report = report_of(subset=True)
    assert report.pairs == 2 and not problems(report) and f"{root}/rgb/c.png" in report.notes[1]
    assert "some.txt" in report_of(list="some.txt").problems["missing"][0]
    report = report_of(list="some.txt", subset=True)
    assert report.pairs == 1 and not problems(report) and report.notes[-1].endswith("y")
    report = report_of(unlabeled="rgb/{stem}.png", subset=True)  # these images are read as well
    assert (report.pairs, report.unlabeled, report.read, list(problems(report))) == (2, 2, 4, ["unreadable"])
    save(root / "ids" / "a_ids.png", 2)
    assert set(problems(report_of(subset=True))) == {"undefined ids"}
    (tmp_path / "town.yaml").write_text(yaml.safe_dump({"name": 3}))
    with pytest.raises(UserError, match="town.yaml"):
        main(["--root", str(root), "--data-sets", str(tmp_path / "town.yaml")])
