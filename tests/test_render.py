"""The embedded scenes: the same pictures every time, in files that read as the real data sets' do, in five domains."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from datasets.domains import DOMAINS
from datasets.formats import FORMATS
from datasets.render import MANIFEST, RenderError, contact_sheet, main, render, render_frame
from tmt_d2.data.label_spaces import CLASSES, IGNORE, TRAIN_ID

SIZE = (32, 64)
WITHOUT = {"synthia": {TRAIN_ID[name] for name in ("terrain", "truck", "train")}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    render(folder, train=11, val=3, size=SIZE, workers=1)
    return folder


@cache
def frames(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [render_frame(name, "train", index, SIZE) for index in range(60)]


def contents(folder: Path) -> dict[str, bytes]:
    # SciPy writes the time into a .mat file; its values are compared elsewhere.
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix != ".mat"
    }


def test_the_number_of_workers_changes_nothing(root: Path, tmp_path: Path) -> None:
    render(tmp_path, train=11, val=3, size=SIZE, workers=3)
    assert contents(root) == contents(tmp_path)


def test_seed_split_and_index_each_give_another_picture() -> None:
    pictures = [
        render_frame("cityscapes", split, index, SIZE, seed)[0].tobytes()
        for split, index, seed in (("train", 0, 0), ("train", 1, 0), ("val", 0, 0), ("train", 0, 1))
    ]
    assert len(set(pictures)) == 4


def test_a_longer_split_begins_with_the_shorter_one(root: Path, tmp_path: Path) -> None:
    render(tmp_path, ["gtav"], train=2, val=0, size=SIZE, workers=1)
    for name in ("00001.png", "00002.png"):
        assert (tmp_path / "gta5/images" / name).read_bytes() == (root / "gta5/images" / name).read_bytes()


def frames_on_disk(root: Path, name: str) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    """(split, index, image RGB, own label ids), read in the way the data sets' own users do."""
    read = []
    for frame in FORMATS[name].frames(11, 3):
        base = root / FORMATS[name].folder
        if name == "cityscapes":
            city = frame.name.split("_")[0]
            image = base / f"leftImg8bit/{frame.split}/{city}/{frame.name}_leftImg8bit.png"
            label = base / f"gtFine/{frame.split}/{city}/{frame.name}_gtFine_labelIds.png"
        elif name == "bdd100k":
            image, label = (
                base / f"images/10k/{frame.split}/{frame.name}.jpg",
                base / f"labels/sem_seg/masks/{frame.split}/{frame.name}.png",
            )
        elif name == "mapillary":
            folder = base / {"train": "training", "val": "validation"}[frame.split]
            image, label = folder / f"images/{frame.name}.jpg", folder / f"labels/{frame.name}.png"
        elif name == "gtav":
            image, label = base / f"images/{frame.name}.png", base / f"labels/{frame.name}.png"
        else:
            folder = base / "RAND_CITYSCAPES"
            image, label = folder / f"RGB/{frame.name}.png", folder / f"GT/LABELS/{frame.name}.png"
        if name == "synthia":
            pixels = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
            assert pixels.dtype == np.uint16 and pixels.shape[2] == 3
            ids = pixels[..., 2]
        else:
            opened = Image.open(label)
            assert opened.mode == ("P" if name in ("mapillary", "gtav") else "L")
            ids = np.asarray(opened)
        read.append((frame.split, frame.index, np.asarray(Image.open(image)), ids))
    return read


@pytest.mark.parametrize("name", DOMAINS)
def test_files_read_back_as_what_was_drawn(root: Path, name: str) -> None:
    table = FORMATS[name].labels.lookup()
    for split, index, image, ids in frames_on_disk(root, name):
        drawn, label = render_frame(name, split, index, SIZE)
        np.testing.assert_array_equal(table[ids], label)
        difference = np.abs(image.astype(int) - drawn)
        assert difference.max() == 0 or (name in ("bdd100k", "mapillary") and difference.mean() < 12)  # JPEG


@pytest.mark.parametrize("name", DOMAINS)
def test_every_train_id_has_an_own_id_and_the_smallest_one(name: str) -> None:
    form = FORMATS[name]
    own = form.own_ids()
    for train_id in range(len(CLASSES)):
        candidates = [value for value, to in form.labels.train_ids.items() if to == train_id]
        assert own[train_id] == min(candidates)
    assert own[IGNORE] in form.labels.ignored


@pytest.mark.parametrize("name", DOMAINS)
def test_the_registered_data_sets_find_every_frame(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.data import DatasetCatalog

    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert [len(DatasetCatalog.get(f"{name}_sem_seg_{split}")) for split in ("train", "val")] == [11, 3]


def test_gtav_palette_index_is_the_cityscapes_id(root: Path) -> None:
    ids = {int(value) for path in (root / "gta5/labels").iterdir() for value in np.unique(np.asarray(Image.open(path)))}
    assert {7, 11, 23} <= ids <= set(range(34))  # road, building, sky


def test_gtav_split_file(root: Path) -> None:
    split = loadmat(root / "gta5/split.mat")
    assert split["trainIds"].shape == (11, 1) and split["valIds"].shape == (3, 1) and split["testIds"].size == 0
    numbers = np.concatenate([split["trainIds"], split["valIds"]]).ravel()
    assert {f"{number:05d}.png" for number in numbers} == {path.name for path in (root / "gta5/images").iterdir()}


def test_gtav_leaves_out_the_numbers_of_frames_that_are_bad_in_the_real_set() -> None:
    names = FORMATS["gtav"].names(20700, 300)
    together = names["train"] + names["val"]
    assert len(together) == len(set(together)) == 21000
    assert not {"15188", "17705", "20801", "20860"} & set(together)
    assert "15187" in together and "20861" in together


def test_synthia_validation_numbers_end_in_nine() -> None:
    names = FORMATS["synthia"].names(11, 3)
    assert names["val"] == ["0000009", "0000019", "0000029"]
    assert len(names["train"]) == 11 and not any(name.endswith("9") for name in names["train"])


def test_labels_of_mapillary_have_the_palette_of_its_version_1(root: Path) -> None:
    for path in (root / "mapillary_vistas").rglob("labels/*.png"):
        palette = Image.open(path).getpalette()
        assert palette is not None and palette[:9] == [165, 42, 42, 0, 192, 0, 196, 196, 196]
        assert palette[3 * 13 : 3 * 14] == [128, 64, 128] and palette[3 * 65 : 3 * 66] == [0, 0, 0]


def test_mapillary_varies_in_size_and_some_files_carry_an_orientation(root: Path) -> None:
    opened = [Image.open(path) for path in sorted((root / "mapillary_vistas/training/images").iterdir())]
    assert len({image.size for image in opened}) > 2
    assert [image.getexif().get(0x0112) for image in opened[:3]] == [1, 1, None]


@pytest.mark.parametrize("name", DOMAINS)
def test_all_classes_occur(name: str) -> None:
    seen = np.zeros(256, int)
    for _, label in frames(name):
        seen += np.bincount(label.ravel(), minlength=256) > 0
    never = WITHOUT.get(name, set())
    assert {c for c in range(19) if seen[c] == 0} == never
    assert min(seen[TRAIN_ID[c]] for c in ("road", "sky", "building", "vegetation", "pole", "car")) > 45
    assert not set(np.flatnonzero(seen)) - set(range(19)) - {IGNORE}


def mean_colours(domain: str, name: str) -> np.ndarray:
    """(N, 3) RGB of one class, one row for each picture that shows it."""
    shown = ((image, label == TRAIN_ID[name]) for image, label in frames(domain))
    return np.array([image[inside].mean(0) for image, inside in shown if inside.any()])


def test_domains_differ_more_than_their_pictures_do() -> None:
    colours = {domain: mean_colours(domain, "building") for domain in DOMAINS}
    for domain, own in colours.items():
        others = np.concatenate([other for name, other in colours.items() if name != domain])
        within = np.linalg.norm(own - own.mean(0), axis=1).mean()
        between = np.linalg.norm(others - own.mean(0), axis=1).mean()
        assert between > 1.2 * within, (domain, between, within)


def test_roads_shift_less_than_buildings() -> None:
    def spread(name: str) -> float:
        centres = np.array([mean_colours(domain, name).mean(0) for domain in DOMAINS])
        return float(np.linalg.norm(centres - centres.mean(0), axis=1).mean())

    assert spread("road") < 0.8 * spread("building")


@pytest.mark.parametrize("size", [(33, 47), (61, 40), (16, 16), (17, 200)])
@pytest.mark.parametrize("name", ["cityscapes", "synthia"])
def test_odd_sizes(name: str, size: tuple[int, int]) -> None:
    image, label = render_frame(name, "train", 0, size)
    assert image.shape == (*size, 3) and label.shape == size
    assert image.dtype == label.dtype == np.uint8


def test_the_same_call_again_does_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    arguments = ["--root", str(root), "--train", "11", "--val", "3", "--size", "32x64"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("already rendered, nothing to do") == 5
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_other_parameters_need_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--root", str(tmp_path), "--data-sets", "bdd100k", "--val", "1", "--size", "32x64", "--workers", "1"]
    assert main([*arguments, "--train", "2"]) == 0
    assert main([*arguments, "--train", "1"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(tmp_path / "bdd100k") in message and "--overwrite" in message
    assert len(list(tmp_path.rglob("*.jpg"))) == 3
    assert main([*arguments, "--train", "1", "--overwrite"]) == 0
    assert len(list(tmp_path.rglob("*.jpg"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bdd100k"]


def test_a_folder_that_was_not_rendered_is_never_touched(tmp_path: Path) -> None:
    real = tmp_path / "cityscapes" / "leftImg8bit"
    real.mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(RenderError, match=r"cityscapes exists and was not rendered .* real data"):
            render(tmp_path, ["bdd100k", "cityscapes"], 1, 1, SIZE, workers=1, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["cityscapes"]  # refused before the other one was made


def test_nothing_half_written_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(FORMATS["gtav"]), "finish", fail)
    with pytest.raises(OSError, match="disk full"):
        render(tmp_path, ["gtav"], 1, 0, SIZE, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data_sets": ["kitti"]}, "unknown data set 'kitti'; choose from cityscapes"),
        ({"size": (8, 64)}, "size 8x64 is too small"),
        ({"train": 0, "val": 0}, "0 train and 0 val"),
        ({"train": -1}, "-1 train"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_requests_that_cannot_be_met(tmp_path: Path, more: dict[str, object], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(tmp_path, **more)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_command_line_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (([], "give --root DIR"), (["--root", "x", "--size", "128"], "write HEIGHTxWIDTH")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_contact_sheet(tmp_path: Path) -> None:
    sheet = contact_sheet(["cityscapes", "mapillary"], SIZE, pairs=2)
    assert sheet.shape == (2 * 36, 4 * 68, 3)
    assert main(["--contact-sheet", str(tmp_path / "sheet.png"), "--size", "32x64"]) == 0
    assert Image.open(tmp_path / "sheet.png").size == (6 * 68, 5 * 36)


def test_the_manifest_is_the_last_word(root: Path) -> None:
    for name in DOMAINS:
        assert (
            (root / FORMATS[name].folder / MANIFEST)
            .read_text()
            .startswith('{"train": 11, "val": 3, "size": [32, 64], "seed": 0')
        )
