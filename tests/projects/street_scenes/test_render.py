"""The embedded scenes: the same pictures every time, in files that read as the real data sets' do, in five domains."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from tmt_d2.data.datasets.label_spaces import IGNORE, TRAIN_ID
from tmt_d2.data.datasets.registration import label_space_of
from tmt_d2.data.reader import read_pair
from tmt_d2.projects.street_scenes.domains import DOMAINS
from tmt_d2.projects.street_scenes.formats import FORMATS
from tmt_d2.projects.street_scenes.render import RenderError, main, render, render_frame

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("name", DOMAINS)
def test_files_read_back_as_what_was_drawn(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    frames = {frame.name: frame for frame in FORMATS[name].frames(11, 3)}
    for split, number in (("train", 11), ("val", 3)):
        records = DatasetCatalog.get(f"{name}_sem_seg_{split}")
        assert len(records) == number
        for record in records:
            image, label = read_pair(record, label_space_of(record["dataset"]))
            frame = frames.pop(Path(record["file_name"]).stem.removesuffix("_leftImg8bit"))
            drawn, drawn_label = render_frame(name, split, frame.index, SIZE)
            np.testing.assert_array_equal(label, drawn_label)
            difference = np.abs(image.astype(int) - drawn)
            assert difference.max() == 0 or (name in ("bdd100k", "mapillary") and difference.mean() < 12)  # JPEG
    assert not frames


def test_gtav_leaves_out_the_numbers_of_frames_that_are_bad_in_the_real_set() -> None:
    names = FORMATS["gtav"].names(20700, 300)
    together = names["train"] + names["val"]
    assert len(together) == len(set(together)) == 21000
    assert not {"15188", "17705", "20801", "20860"} & set(together)
    assert "15187" in together and "20861" in together


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


def test_a_sheet_shows_every_domain(tmp_path: Path) -> None:
    assert main(["--contact-sheet", str(tmp_path / "sheet.png"), "--size", "32x64"]) == 0
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width > 6 * SIZE[1] and height > len(DOMAINS) * SIZE[0]  # three pairs a row, a row a domain
