"""Street scenes: deterministic images, files that read back as the real data sets' do, five different domains."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from tests.helpers.errors import refuses
from tmt_d2.data.datasets.label_spaces import IGNORE, TRAIN_ID
from tmt_d2.data.datasets.registration import label_space_of
from tmt_d2.data.reader import read_pair
from tmt_d2.errors import UserError
from tmt_d2.projects.street_scenes.command import main
from tmt_d2.projects.street_scenes.domains import DOMAINS
from tmt_d2.projects.street_scenes.formats import FORMATS
from tmt_d2.projects.street_scenes.render import render, render_frame

pytestmark = pytest.mark.slow

SIZE = (32, 64)
COUNTS = {"train": 9, "val": 2}
WITHOUT = {"synthia": {TRAIN_ID[name] for name in ("terrain", "truck", "train")}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    render(folder, **COUNTS, size=SIZE, workers=1)
    return folder


@cache
def frames(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [render_frame(name, "train", index, SIZE) for index in range(24)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mat")  # these contain the time
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_number_of_workers_changes_nothing(root: Path, tmp_path: Path) -> None:
    render(tmp_path, ["cityscapes"], **COUNTS, size=SIZE, workers=2)
    assert contents(root / "cityscapes") == contents(tmp_path / "cityscapes")


def test_seed_split_and_index_each_give_another_image() -> None:
    images = [
        render_frame("cityscapes", split, index, SIZE, seed)[0].tobytes()
        for split, index, seed in (("train", 0, 0), ("train", 1, 0), ("val", 0, 0), ("train", 0, 1))
    ]
    assert len(set(images)) == 4


@pytest.mark.parametrize("name", DOMAINS)
def test_files_read_back_as_rendered(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    frames = {frame.name: frame for frame in FORMATS[name].frames(**COUNTS)}
    for split, count in COUNTS.items():
        records = DatasetCatalog.get(f"{name}_sem_seg_{split}")
        assert len(records) == count
        for record in records:
            image, label = read_pair(record, label_space_of(record["dataset"]))
            frame = frames.pop(Path(record["file_name"]).stem.removesuffix("_leftImg8bit"))
            rendered, rendered_label = render_frame(name, split, frame.index, SIZE)
            np.testing.assert_array_equal(label, rendered_label)
            difference = np.abs(image.astype(int) - rendered)
            assert difference.max() == 0 or (name in ("bdd100k", "mapillary") and difference.mean() < 12)  # JPEG
    assert not frames


def test_mapillary_varies_in_size_and_some_files_carry_an_orientation(root: Path) -> None:
    images = [Image.open(path) for path in sorted((root / "mapillary_vistas/training/images").iterdir())]
    assert len({image.size for image in images}) > 2
    assert [image.getexif().get(0x0112) for image in images[:3]] == [1, 1, None]


@pytest.mark.parametrize("name", DOMAINS)
def test_all_classes_occur(name: str) -> None:
    shown = sum((np.bincount(label.ravel(), minlength=256) > 0).astype(int) for _, label in frames(name))
    assert {c for c in range(19) if shown[c] == 0} == WITHOUT.get(name, set())
    assert min(shown[TRAIN_ID[c]] for c in ("road", "sky", "building", "vegetation", "pole", "car")) > 16
    assert not set(np.flatnonzero(shown)) - set(range(19)) - {IGNORE}


def mean_colors(domain: str, name: str) -> np.ndarray:
    """(N, 3) RGB of one class, one row per image that shows it."""
    masks = ((image, label == TRAIN_ID[name]) for image, label in frames(domain))
    return np.array([image[mask].mean(0) for image, mask in masks if mask.any()])


def test_domains_differ_more_than_their_images_do() -> None:
    colors = {domain: mean_colors(domain, "building") for domain in DOMAINS}
    for domain, own in colors.items():
        others = np.concatenate([other for name, other in colors.items() if name != domain])
        within = np.linalg.norm(own - own.mean(0), axis=1).mean()
        between = np.linalg.norm(others - own.mean(0), axis=1).mean()
        assert between > 1.2 * within, (domain, between, within)


@pytest.mark.parametrize("size", [(61, 40), (16, 16)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    image, label = render_frame("cityscapes", "train", 0, size)
    assert image.shape == (*size, 3) and label.shape == size
    assert image.dtype == label.dtype == np.uint8


def test_the_same_call_again_does_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main(["--root", str(root), "--train", "9", "--val", "2", "--size", "32x64"]) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_other_options_need_overwrite(tmp_path: Path) -> None:
    arguments = ["--root", str(tmp_path), "--data-sets", "bdd100k", "--val", "1", "--size", "32x64", "--workers", "1"]
    main([*arguments, "--train", "2"])
    with pytest.raises(UserError) as error:
        main([*arguments, "--train", "1"])
    assert error.value.key == str(tmp_path / "bdd100k") and "--overwrite" in error.value.hint
    assert len(list(tmp_path.rglob("*.jpg"))) == 3
    main([*arguments, "--train", "1", "--overwrite"])
    assert len(list(tmp_path.rglob("*.jpg"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bdd100k"]


def test_a_folder_that_was_not_rendered_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "cityscapes" / "leftImg8bit").mkdir(parents=True)
    for overwrite in (False, True):
        with refuses(str(tmp_path / "cityscapes")):
            render(tmp_path, ["bdd100k", "cityscapes"], 1, 1, SIZE, workers=1, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["cityscapes"]  # refused before bdd100k was rendered


def test_an_error_leaves_nothing_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(type(FORMATS["gtav"]), "finish", fail)
    with pytest.raises(OSError):
        render(tmp_path, ["gtav"], 1, 0, SIZE, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"data_sets": ["kitti"]}, "--data-sets"),
        ({"size": (8, 64)}, "--size"),
        ({"train": 0, "val": 0}, "--train and --val"),
        ({"train": -1}, "--train and --val"),
        ({"workers": 0}, "--workers"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, object], key: str) -> None:
    with refuses(key):
        render(tmp_path, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
