"""Names, label spaces and layouts on disk of the five registered data sets, and what is missing of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from scipy.io import savemat

from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.data.datasets.label_spaces import CLASSES, PALETTE
from tmt_d2.data.datasets.layouts import find
from tmt_d2.data.datasets.mapillary import MAPILLARY_A, MAPILLARY_B
from tmt_d2.data.datasets.registration import label_space_of, register_all
from tmt_d2.data.datasets.synthia import SYNTHIA
from tmt_d2.data.reader import DataError, MissingDataError
from tmt_d2.errors import UserError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def touch(root: Path, *paths: str) -> None:
    """Listing looks at names only, so empty files will do."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def ids_of(name: str) -> list[str]:
    return [record["image_id"] for record in DatasetCatalog.get(name)]


def relative(root: Path, name: str) -> list[tuple[str, str]]:
    return [
        (str(Path(r["file_name"]).relative_to(root)), str(Path(r["sem_seg_file_name"]).relative_to(root)))
        for r in DatasetCatalog.get(name)
    ]


def test_every_name_is_registered_with_what_detectron2_looks_for() -> None:
    families = ("cityscapes", "bdd100k", "mapillary", "mapillary_b", "gtav", "synthia")
    names = {f"{family}_sem_seg_{split}" for family in families for split in ("train", "val")}
    names |= {"gtav_sem_seg_test", "gtav_sem_seg_all"}
    assert names <= set(DatasetCatalog.list())
    for name in names:
        metadata = MetadataCatalog.get(name)
        assert metadata.stuff_classes == list(CLASSES)
        assert [tuple(color) for color in metadata.stuff_colors] == list(PALETTE)
        assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
        assert label_space_of(name) is metadata.label_space
    assert label_space_of("cityscapes_sem_seg_train") is CITYSCAPES
    assert label_space_of("synthia_sem_seg_train") is SYNTHIA
    assert label_space_of("mapillary_sem_seg_val") is MAPILLARY_A
    assert label_space_of("mapillary_b_sem_seg_val") is MAPILLARY_B
    subsets = MetadataCatalog.get("synthia_sem_seg_val").class_subsets
    assert {name: len(subset) for name, subset in subsets.items()} == {"16 classes": 16, "13 classes": 13}
    assert not hasattr(MetadataCatalog.get("gtav_sem_seg_val"), "class_subsets")
    register_all()  # a second time changes nothing


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"gta5.*gtav_sem_seg_train") as error:
        label_space_of("gta5")
    assert "ade20k" not in str(error.value)
    assert "gta5" not in MetadataCatalog.list()


@pytest.mark.parametrize(("family", "folder"), [("cityscapes", "cityscapes"), ("gtav", "gta5")])
def test_a_missing_folder_says_where_it_looked_and_what_to_do(root: Path, family: str, folder: str) -> None:
    with pytest.raises(MissingDataError) as error:
        DatasetCatalog.get(f"{family}_sem_seg_train")
    assert error.value.key == f"{root}/{folder}" and "DETECTRON2_DATASETS" in error.value.hint


def test_the_root_is_read_when_a_split_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("one", "two"):
        stem = f"cityscapes/{{}}/val/ulm/ulm_{place}"
        touch(tmp_path / place, stem.format("leftImg8bit") + "_leftImg8bit.png")
        touch(tmp_path / place, stem.format("gtFine") + "_gtFine_labelIds.png")
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / place))
        assert ids_of("cityscapes_sem_seg_val") == [f"ulm_{place}"]
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").rename(tmp_path / "datasets")
    assert ids_of("cityscapes_sem_seg_val") == ["ulm_one"]


# ---- Cityscapes


def test_cityscapes_prefers_label_ids_and_accepts_train_ids(root: Path) -> None:
    for stem in ("ulm/ulm_000000_000019", "aachen/aachen_000001_000019"):
        touch(root, f"cityscapes/leftImg8bit/train/{stem}_leftImg8bit.png")
        touch(root, f"cityscapes/gtFine/train/{stem}_gtFine_labelTrainIds.png")
        touch(root, f"cityscapes/gtFine/train/{stem}_gtFine_instanceIds.png")
    touch(root, "cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png")
    touch(root, "cityscapes/leftImg8bit/val/ulm/ulm_000000_000020_leftImg8bit.png")
    touch(root, "cityscapes/leftImg8bit/train/ulm/._ulm_000000_000019_leftImg8bit.png")  # from a foreign archiver
    records = DatasetCatalog.get("cityscapes_sem_seg_train")
    assert records == [
        {
            "file_name": f"{root}/cityscapes/leftImg8bit/train/{city}/{stem}_leftImg8bit.png",
            "sem_seg_file_name": f"{root}/cityscapes/gtFine/train/{city}/{stem}_gtFine_{kind}.png",
            "image_id": stem,
            "dataset": "cityscapes_sem_seg_train",
        }
        for city, stem, kind in (
            ("aachen", "aachen_000001_000019", "labelTrainIds"),
            ("ulm", "ulm_000000_000019", "labelIds"),
        )
    ]


def test_an_image_without_a_label_is_an_error(root: Path) -> None:
    for number in range(4):
        touch(root, f"cityscapes/leftImg8bit/train/ulm/ulm_{number}_leftImg8bit.png")
    touch(root, "cityscapes/gtFine/train/ulm/ulm_1_gtFine_labelIds.png")
    first = f"{root}/cityscapes/leftImg8bit/train/ulm/ulm_0_leftImg8bit.png"
    with pytest.raises(DataError) as error:
        DatasetCatalog.get("cityscapes_sem_seg_train")
    assert error.value.key == "cityscapes_sem_seg_train" and first in str(error.value)
    assert "DATASETS.SUBSETS" in error.value.hint


# ---- BDD100K


@pytest.mark.parametrize(
    ("images", "labels", "suffix"),
    [("images/10k/val", "labels/sem_seg/masks/val", ""), ("seg/images/val", "seg/labels/val", "_train_id")],
    ids=["new layout", "legacy layout"],
)
def test_both_layouts_of_bdd100k(
    root: Path, caplog: pytest.LogCaptureFixture, images: str, labels: str, suffix: str
) -> None:
    touch(root, *(f"bdd100k/{images}/{stem}.jpg" for stem in "abc"))
    touch(root, *(f"bdd100k/{labels}/{stem}{suffix}.png" for stem in "bcde"))
    with caplog.at_level(logging.WARNING):
        assert relative(root, "bdd100k_sem_seg_val") == [
            (f"bdd100k/{images}/{stem}.jpg", f"bdd100k/{labels}/{stem}{suffix}.png") for stem in "bc"
        ]
    assert "left out 1 images without a label and 2 labels without an image" in caplog.text


# ---- Mapillary


@pytest.mark.parametrize("folder", ["labels", "v1.2/labels"])
def test_both_layouts_of_mapillary(root: Path, folder: str) -> None:
    touch(root, "mapillary_vistas/validation/images/x.jpg", f"mapillary_vistas/validation/{folder}/x.png")
    touch(root, "mapillary_vistas/validation/v2.0/labels/x.png")
    for name in ("mapillary_sem_seg_val", "mapillary_b_sem_seg_val"):
        assert relative(root, name) == [
            ("mapillary_vistas/validation/images/x.jpg", f"mapillary_vistas/validation/{folder}/x.png")
        ]


def test_mapillary_takes_v1_2_where_both_are_there_and_never_v2_0(root: Path) -> None:
    touch(root, "mapillary_vistas/training/images/x.jpg", "mapillary_vistas/training/v2.0/labels/x.png")
    with pytest.raises(FileNotFoundError, match=r"training/v1\.2/labels/"):
        DatasetCatalog.get("mapillary_sem_seg_train")
    touch(root, "mapillary_vistas/training/labels/x.png", "mapillary_vistas/training/v1.2/labels/x.png")
    assert relative(root, "mapillary_sem_seg_train")[0][1] == "mapillary_vistas/training/v1.2/labels/x.png"


# ---- GTAV


def gtav(root: Path, numbers: Iterable[int], **splits: list[int]) -> None:
    touch(root, *(f"gta5/{kind}/{number:05d}.png" for number in numbers for kind in ("images", "labels")))
    if splits:
        columns = {key: np.array(numbers, np.uint16).reshape(-1, 1) for key, numbers in splits.items()}
        savemat(root / "gta5" / "split.mat", columns)


def test_gtav_takes_its_splits_from_the_list(root: Path) -> None:
    numbers = (1, 2, 3, 15188, 17705, 20800, 20801, 20860, 20861)
    gtav(root, numbers, trainIds=[3, 1, 15188, 17705, 20800, 20801], valIds=[2, 20860, 24966], testIds=[20861])
    assert ids_of("gtav_sem_seg_train") == ["00001", "00003", "20800"]
    assert ids_of("gtav_sem_seg_val") == ["00002"]
    assert ids_of("gtav_sem_seg_test") == ["20861"]
    assert ids_of("gtav_sem_seg_all") == ["00001", "00002", "00003", "20800", "20861"]


def test_gtav_without_its_list_names_the_way_out(root: Path) -> None:
    gtav(root, (1, 2))
    with pytest.raises(FileNotFoundError, match=r"gta5/split\.mat.*gtav_sem_seg_all"):
        DatasetCatalog.get("gtav_sem_seg_train")
    assert ids_of("gtav_sem_seg_all") == ["00001", "00002"]


def test_a_damaged_list_of_gtav(root: Path) -> None:
    gtav(root, (1,), trainIds=[1])
    with pytest.raises(DataError, match=r"split\.mat: .*valIds"):
        DatasetCatalog.get("gtav_sem_seg_val")
    (root / "gta5" / "split.mat").write_bytes(b"not a MATLAB file")
    with pytest.raises(DataError, match=r"split\.mat: .*trainIds"):
        DatasetCatalog.get("gtav_sem_seg_train")


def test_a_split_of_gtav_without_a_frame_on_disk_is_an_error(root: Path) -> None:
    gtav(root, (1,), trainIds=[1], valIds=[], testIds=[7])
    for split in ("val", "test"):
        with pytest.raises(DataError, match=f"gtav_sem_seg_{split}"):
            DatasetCatalog.get(f"gtav_sem_seg_{split}")


# ---- SYNTHIA


def test_synthia_is_split_by_number(root: Path) -> None:
    for number in range(25):
        touch(root, *(f"synthia/RAND_CITYSCAPES/{kind}/{number:07d}.png" for kind in ("RGB", "GT/LABELS", "GT/COLOR")))
    assert ids_of("synthia_sem_seg_val") == ["0000009", "0000019"]
    train = ids_of("synthia_sem_seg_train")
    assert len(train) == 23 and "0000009" not in train
    assert all("/GT/LABELS/" in label for _, label in relative(root, "synthia_sem_seg_val"))


def test_a_frame_of_synthia_that_is_no_number_is_an_error(root: Path) -> None:
    touch(root, "synthia/RAND_CITYSCAPES/RGB/copy.png", "synthia/RAND_CITYSCAPES/GT/LABELS/copy.png")
    with pytest.raises(DataError, match="'copy'"):
        DatasetCatalog.get("synthia_sem_seg_train")


# ---- patterns


def test_patterns_with_captures(tmp_path: Path) -> None:
    touch(tmp_path, "a/1/x.png", "a/1/y.jpg", "a/2/x.png", "a/.hidden/x.png", "a/x.png", "a/1/deep/x.png", "a/1/xxpng")
    assert find(tmp_path, "a/{stem}.png") == {"x": f"{tmp_path}/a/x.png"}
    assert find(tmp_path, "a/1/x{stem}") == {".png": f"{tmp_path}/a/1/x.png", "xpng": f"{tmp_path}/a/1/xxpng"}
    assert set(find(tmp_path, "{top}/{drive}/{stem}.png")) == {"1_x_a", "2_x_a"}
    assert find(tmp_path, "nowhere/{stem}.png") == {}
    assert find(tmp_path, "a/x.png/{stem}.png") == {}
    with pytest.raises(DataError, match=r"a/1/x.png.* 'x'|a/2/x.png.* 'x'"):
        find(tmp_path, "a/*/{stem}.png")


def test_a_capture_may_come_back_later_in_the_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "s1/s1_07.png", "s1/s2_08.png", "s(2/s(2_09.png", "s1/s1_s1.png")
    assert set(find(tmp_path, "{drive}/{drive}_{frame}.png")) == {"s1_07", "s(2_09", "s1_s1"}
    assert set(find(tmp_path, "s1/{frame}_{frame}.png")) == {"s1"}


def test_links_to_where_the_files_are_stored_are_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.mktemp("store")
    touch(store, "images/00001.png", "labels/00001.png")
    (root / "gta5").symlink_to(store, target_is_directory=True)
    assert relative(root, "gtav_sem_seg_all") == [("gta5/images/00001.png", "gta5/labels/00001.png")]
