"""What datasets.check finds in the folders of data sets, and that it leaves them as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from tmt_d2.cli.check_data import main
from tmt_d2.errors import UserError
from tmt_d2.projects.street_scenes.render import render

pytestmark = pytest.mark.slow


def save(path: Path, value: int = 7, size: tuple[int, int] = (8, 6)) -> None:
    """size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint8)).save(path)


def run(root: Path, *arguments: str) -> tuple[int, dict[str, dict[str, dict]]]:
    file = root.parent / "report.json"
    status = main(["--root", str(root), "--workers", "2", "--json", str(file), *arguments])
    report = json.loads(file.read_text())
    assert [path.name for path in root.parent.glob(".report*")] == []
    return status, report["data_sets"]


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
    render(root, train=3, val=2, size=(32, 64), workers=1)
    before = state(root)
    status, report = run(root)
    assert status == 0, report
    assert state(root) == before
    assert set(report) == {"cityscapes", "bdd100k", "mapillary", "gtav", "synthia"}
    for splits in report.values():
        for split, found in splits.items():
            count = {"train": 3, "val": 2, "test": 0}[split]
            assert (found["found"], found["pairs"], found["read"], found["expected"]) == (count, count, count, None)
            assert found["problems"] == {}
    assert report["cityscapes"]["train"]["sizes"] == dict.fromkeys(("smallest", "most common", "largest"), "64x32")
    assert "cityscapes  train" in capsys.readouterr().out


def test_nothing_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root) == (2, {})
    output = capsys.readouterr().out
    assert (
        "DETECTRON2_DATASETS" in output
        and "python -m tmt_d2.projects.street_scenes.render" in output
        and "gta5" in output
    )


def test_a_data_set_that_was_asked_for_and_is_not_there_is_a_problem(root: Path) -> None:
    render(root, ["cityscapes"], train=1, val=1, size=(32, 64), workers=1)
    assert run(root)[0] == 0
    assert run(root, "--data-sets", "cityscapes")[0] == 0
    assert run(root, "--data-sets", "cityscapes", "gtav")[0] == 1


def test_every_problem_is_found_and_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stem, value in (("good", 13), ("outside", 70), ("empty", 13), ("cut", 13), ("both", 99), ("alone", 13)):
        mapillary(root, "training", stem, value)
    mapillary(root, "training", "small", size=(4, 6))
    save(root / "mapillary_vistas/training/images/large.jpg", 100, (20, 10))
    save(root / "mapillary_vistas/training/labels/large.png", 13, (20, 10))
    images, labels = (root / "mapillary_vistas/training" / kind for kind in ("images", "labels"))
    (images / "empty.jpg").write_bytes(b"")
    for path in (labels / "cut.png", images / "both.jpg"):
        path.write_bytes(path.read_bytes()[:-20])
    (labels / "alone.png").rename(labels / "unused.png")
    before = state(root)
    status, report = run(root)
    assert status == 1 and state(root) == before
    found = report["mapillary"]["train"]
    assert (found["found"], found["expected"], found["pairs"], found["read"]) == (8, 18000, 7, 7)
    assert found["sizes"] == {"smallest": "8x6", "most common": "8x6", "largest": "20x10"}
    problems = found["problems"]
    assert problems["missing"] == ["8 of 18000 images found"]
    assert problems["unlabeled"] == [str(images / "alone.jpg")]
    assert problems["unused"] == [str(labels / "unused.png")]
    assert [message.split(": ")[0] for message in problems["unreadable"]] == [
        str(path) for path in (images / "both.jpg", labels / "cut.png", images / "empty.jpg")
    ]
    assert [message.split(": ")[0] for message in problems["undefined ids"]] == [
        str(labels / name) for name in ("both.png", "outside.png")
    ]
    assert all("v2.0" in message for message in problems["undefined ids"])
    assert problems["sizes"] == [f"{images / 'small.jpg'} is 8x6, but its label {labels / 'small.png'} is 4x6"]
    (message,) = report["mapillary"]["val"]["problems"]["missing"]
    assert "no images like" in message and "/validation/images/" in message
    output = capsys.readouterr().out
    assert "empty.jpg: the file is empty" in output and "not in " in output


def test_only_the_first_messages_of_a_kind_are_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(7):
        mapillary(root, "training", str(index), value=120)
    assert len(run(root)[1]["mapillary"]["train"]["problems"]["undefined ids"]) == 7
    output = capsys.readouterr().out
    assert output.count("are not defined in") == 3 and "... 7 in all" in output


def test_quick_reads_a_sample_from_the_first_to_the_last(root: Path) -> None:
    for index in range(45):
        mapillary(root, "training", f"{index:02d}", value=120 if index in (0, 44) else 13)
    found = run(root, "--quick")[1]["mapillary"]["train"]
    assert (found["found"], found["read"]) == (45, 20)
    assert len(found["problems"]["undefined ids"]) == 2
    assert run(root)[1]["mapillary"]["train"]["read"] == 45


def test_labels_of_mapillary_2_are_found_by_their_palette(root: Path) -> None:
    mapillary(root, "training", "0")
    label = root / "mapillary_vistas/training/labels/0.png"
    image = Image.open(label)
    image.putpalette([165, 42, 42, 0, 192, 0, 250, 170, 31] + [0] * 759)
    image.save(label)
    (message,) = run(root)[1]["mapillary"]["train"]["problems"]["undefined ids"]
    assert str(label) in message and "v2.0" in message


def test_pictures_with_an_orientation_are_counted_and_are_no_problem(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(root, ["mapillary", "bdd100k"], train=5, val=1, size=(32, 64), workers=1)
    images = sorted((root / "mapillary_vistas/training/images").iterdir())
    for index, orientation in ((1, 3), (3, 6), (4, 8)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(images[index]).save(images[index], exif=exif)
    status, report = run(root)
    found = report["mapillary"]["train"]
    assert status == 0 and found["problems"] == {}
    assert found["EXIF orientation"] == [str(images[index]) for index in (1, 3, 4)]
    assert report["mapillary"]["val"]["EXIF orientation"] == report["bdd100k"]["train"]["EXIF orientation"] == []
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if "EXIF" in line)
    assert line.startswith(
        "mapillary train, warning: 3 of 5 pictures have an EXIF orientation other than 1, the first is "
        f"{images[1]}; they are read as stored, or turned where only that has the label's size"
    )


def gtav(root: Path, number: int) -> None:
    save(root / "gta5" / "images" / f"{number:05d}.png")
    save(root / "gta5" / "labels" / f"{number:05d}.png")


def test_the_frames_of_gtav(root: Path) -> None:
    for number in (1, 2, 15188):
        gtav(root, number)
    status, report = run(root)
    assert status == 1 and set(report["gtav"]) == {"train", "val", "test", "all"}
    assert "split.mat" in report["gtav"]["train"]["problems"]["missing"][0]
    everything = report["gtav"]["all"]
    assert (everything["found"], everything["pairs"], everything["known bad, left out"]) == (3, 2, 1)

    columns = {"trainIds": [1, 15188, 24966], "valIds": [2], "testIds": []}
    savemat(root / "gta5" / "split.mat", {key: np.array(ids, np.uint16).reshape(-1, 1) for key, ids in columns.items()})
    report = run(root)[1]
    assert set(report["gtav"]) == {"train", "val", "test"}
    assert report["gtav"]["train"]["known bad, left out"] == 1
    message = "2 of 12403 images found; the first frame that is missing is 24966"
    assert report["gtav"]["train"]["problems"]["missing"] == [message]


def test_both_layouts_of_bdd100k_and_labels_of_16_bits(root: Path) -> None:
    save(root / "bdd100k/seg/images/train/a.jpg")
    save(root / "bdd100k/seg/labels/train/a_train_id.png", 18)
    save(root / "bdd100k/images/10k/val/b.jpg")
    save(root / "bdd100k/labels/sem_seg/masks/val/b.png", 40)  # a panoptic mask
    save(root / "synthia/RAND_CITYSCAPES/RGB/0000009.png")
    (root / "synthia/RAND_CITYSCAPES/GT/LABELS").mkdir(parents=True)
    cv2.imwrite(
        str(root / "synthia/RAND_CITYSCAPES/GT/LABELS/0000009.png"), np.full((6, 8, 3), (0, 1000, 3), np.uint16)
    )
    report = run(root)[1]
    assert set(report["bdd100k"]["train"]["problems"]) == {"missing"}
    assert "ids 40 " in report["bdd100k"]["val"]["problems"]["undefined ids"][0]
    assert report["synthia"]["val"]["problems"] == {"missing": ["1 of 940 images found"]}


def test_a_custom_data_set(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(root / "rgb" / "a.png")
    save(root / "ids" / "a.png", 1)
    file = tmp_path / "town.yaml"
    text = "name: town\nroot: root\nclasses: [road, sky]\n"
    text += "splits: {train: {images: 'rgb/{stem}.png', labels: 'ids/{stem}.png'}}\n"
    file.write_text(text)
    status, report = run(root, "--data-sets", str(file))
    assert status == 0 and report["town"]["train"]["pairs"] == 1
    save(root / "ids" / "a.png", 2)
    status, report = run(root, "--data-sets", str(file))
    assert status == 1 and "ids 2 are not defined in town" in report["town"]["train"]["problems"]["undefined ids"][0]
    file.write_text("name: 3")
    assert main(["--root", str(root), "--data-sets", str(file)]) == 1
    assert "town.yaml: name" in capsys.readouterr().err


def test_shares_of_pixels_and_a_sheet_of_overlays(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "town"
    splits = {name: {"images": f"{name}/{{stem}}.png", "labels": f"{name}/ids/{{stem}}.png"} for name in ("a", "b")}
    classes = ["lawn", {"name": "shed", "color": [0, 90, 255]}, "pond"]
    content = {"name": "town", "splits": splits, "classes": classes, "train_ids": {0: "lawn", 1: "shed"}}
    for split in splits:
        for stem in "12":
            save(folder / split / f"{stem}.png", 100, (8, 4))
            save(folder / split / "ids" / f"{stem}.png", 255, (8, 4))
    label = np.full((4, 8), 255, np.uint8)
    label[:2], label[2, :4] = 1, 0
    Image.fromarray(label).save(folder / "a/ids/1.png")
    file = folder / "town.yaml"
    file.write_text(yaml.safe_dump(content | {"ignore_ids": [255]}))
    sheet = tmp_path / "sheet.png"
    status, report = run(root, "--data-sets", str(file), "--sheet", str(sheet))
    first, second = report["town"]["a"], report["town"]["b"]
    assert first["percent of pixels"] == {"lawn": 6.25, "shed": 25.0, "pond": 0, "(ignored)": 68.75}
    assert (first["labeled"], first["problems"]) == (1, {})
    assert second["percent of pixels"]["(ignored)"] == 100
    assert (second["labeled"], list(second["problems"]), status) == (0, ["no classes"], 1)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lawn", "6.25", "0.00"] in rows and not any(row[:1] == ["pond"] for row in rows)  # no id leads to it
    drawn = np.asarray(Image.open(sheet).convert("RGB")).reshape(-1, 3)
    mixed = [40, 94, 193]  # 0.4 of 100 grey and 0.6 of (0, 90, 255)
    colors = mixed, (0, 90, 255), (40, 40, 40)
    shed, legend, ignored = ((np.abs(drawn - np.array(color, float)).max(1) <= 1).sum() for color in colors)
    assert shed > 10000 and legend > 100 and ignored > 10000
    for name in ("sheet.txt", "nowhere/sheet.png"):
        with pytest.raises((SystemExit, UserError)):
            run(root, "--data-sets", str(file), "--sheet", str(tmp_path / name))


def test_classes_subsets_and_images_without_labels(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stem in "abcd":
        save(root / "rgb" / f"{stem}.png")
    for stem in "abx":
        save(root / "ids" / f"{stem}.png", 1)
    (tmp_path / "some.txt").write_text("a\nc\ny\n")
    (root / "rgb" / "d.png").write_bytes(b"")

    def found(**split: object) -> tuple[int, dict, str]:
        patterns = {"images": "rgb/{stem}.png", "labels": "ids/{stem}.png", **split}
        content = {"name": "town", "root": "root", "classes": ["lawn", "pond"], "train_ids": {1: "pond"}}
        (tmp_path / "town.yaml").write_text(yaml.safe_dump(content | {"splits": {"train": patterns}}))
        status, report = run(root, "--data-sets", str(tmp_path / "town.yaml"))
        return status, report["town"]["train"], capsys.readouterr().out

    classes = "2 classes of its own: lawn, pond; no id leads to: lawn"
    status, report, output = found()
    assert status == 1 and set(report["problems"]) == {"unlabeled", "unused"} and report["notes"] == [classes]
    assert f"town train: {classes}" in output
    status, report, output = found(subset=True)
    assert status == 0 and report["pairs"] == 2 and report["problems"] == {}
    assert f"2 images without a label, the first is {root}/rgb/c.png; 1 labels without an image" in output
    status, report, _ = found(list="some.txt")
    assert status == 1 and "names 1 of 3 that images does not have: y" in report["problems"]["missing"][0]
    status, report, output = found(list="some.txt", subset=True)
    assert (status, report["pairs"]) == (0, 1) and "1 names of its list without an image, the first is y" in output
    status, report, _ = found(unlabeled="rgb/{stem}.png", subset=True)  # they are read, too
    assert (status, report["pairs"], report["unlabeled on purpose"], report["read"]) == (1, 2, 2, 4)
    assert report["problems"] == {"unreadable": [f"{root}/rgb/d.png: the file is empty (0 bytes)"]}


def test_a_part_of_a_built_in_data_set_on_purpose(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("training", "validation"):
        for stem in "ab":
            mapillary(root, split, stem)
    (root / "mapillary_vistas/training/labels/b.png").unlink()
    assert run(root)[0] == 1
    capsys.readouterr()
    status, report = run(root, "--subsets")
    assert status == 0 and report["mapillary"]["train"]["problems"] == {}
    assert "mapillary train: a subset on purpose, left out are 1 images without a label" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-sets", "gta5"], "--data-sets gta5: should be one of cityscapes, bdd100k, mapillary, gtav, synthia"),
        (["--workers", "0"], "--workers 0: should be at least 1"),
    ],
)
def test_wrong_arguments(root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        main(["--root", str(root), *arguments])
    assert message in capsys.readouterr().err


def test_nothing_is_written_below_the_root(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--root", str(root), "--json", str(root / "report.json")])
    assert "where nothing is written" in capsys.readouterr().err
    assert list(root.iterdir()) == []
