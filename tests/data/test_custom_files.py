"""Files of custom data sets: patterns, lists, subsets, images without labels, links."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from tests.helpers.custom_data import SPLITS, save, write
from tests.helpers.errors import refuses
from tmt_d2.data import label_space_of, register_custom
from tmt_d2.data.datasets.registration import labeled_records
from tmt_d2.data.reader import DataError, read_pair
from tmt_d2.errors import UserError

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def frames(folder: Path, *stems: str, ids: bool = True) -> None:
    for stem in stems:
        save(folder / "rgb" / f"{stem}.png", [[0]])
        if ids:
            save(folder / "ids" / f"{stem}_ids.png", [[7]])


def stems_of(file: Path, caplog: pytest.LogCaptureFixture | None = None) -> dict[str, bool]:
    """stem -> whether the record has a label."""
    register_custom(file)
    records = DatasetCatalog.get("town_sem_seg_train")
    assert all(Path(record["file_name"]).stem == record["image_id"].split("_")[-1] for record in records)
    return {record["image_id"]: "sem_seg_file_name" in record for record in records}


def test_a_list_file_restricts_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames(tmp_path, "a", "b", "c", "d")
    frames(tmp_path, "e", ids=False)  # not in the list: no label is missed
    (tmp_path / "some.txt").write_text("# the good ones\n\n  c   # by its stem\n./rgb/a.png\nc\n")
    monkeypatch.chdir(tmp_path)
    file = write(Path("."), splits={"train": SPLITS["train"] | {"list": "some.txt"}})
    register_custom(file)
    monkeypatch.chdir("/")
    assert stems_of(tmp_path / file) == {"a": True, "c": True}


@pytest.mark.parametrize("text", ["a\nx\nrgb/y.png\n", "# nothing\n", "\udcff"])
def test_a_list_that_names_what_is_not_there(tmp_path: Path, text: str) -> None:
    frames(tmp_path, "a", "b")
    (tmp_path / "some.txt").write_text(text, errors="surrogateescape")
    for name in ("some.txt", "gone.txt"):
        file = write(tmp_path, splits={"train": SPLITS["train"] | {"list": name}})
        with refuses(f"{file}: splits.train.list", str(tmp_path / name)):
            stems_of(file)


def test_a_subset_on_purpose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames(tmp_path, "a", "b")
    frames(tmp_path, "c", ids=False)
    (tmp_path / "all.txt").write_text("a\nc\nx\n")
    file = write(tmp_path, splits={"train": SPLITS["train"] | {"list": "all.txt", "subset": True}})
    assert stems_of(file) == {"a": True}
    assert "1 names in the split's list have no image" in caplog.text
    assert "left out 1 images without a label and 0 labels without an image" in caplog.text


def test_several_patterns(tmp_path: Path) -> None:
    frames(tmp_path, "a", "b")
    save(tmp_path / "more" / "c.png", [[0]])
    save(tmp_path / "ids" / "c_ids.png", [[7]])
    split = SPLITS["train"] | {"images": ["rgb/{stem}.png", "more/{stem}.png", "rgb/b{stem}.png"]}
    with pytest.raises(FileNotFoundError, match=r"splits\.train\.images is .*rgb/b\{stem\}\.png"):
        stems_of(write(tmp_path, name="town", splits={"train": split}))
    split["images"] = ["rgb/{stem}.png", "more/{stem}.png", "rgb/{stem}.png"]  # the same files once more
    DatasetCatalog.remove("town_sem_seg_train")
    assert stems_of(write(tmp_path, splits={"train": split})) == dict.fromkeys("abc", True)
    save(tmp_path / "more" / "a.png", [[0]])
    DatasetCatalog.remove("town_sem_seg_train")
    with pytest.raises(DataError, match=r"rgb/a\.png and .*/more/a\.png"):
        stems_of(write(tmp_path, splits={"train": split}))


def test_images_without_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An image that has a label is not there once more; one whose label is meant to be missing is no error."""
    frames(tmp_path, "a")
    frames(tmp_path, "b", ids=False)
    save(tmp_path / "more" / "c.png", [[0]])
    split = SPLITS["train"] | {"unlabeled": ["rgb/{stem}.png", "more/{stem}.png"]}
    caplog.set_level(logging.INFO)
    assert stems_of(write(tmp_path, splits={"train": split})) == {"a": True, "b": False, "c": False}
    assert "town_sem_seg_train: 2 images without a label" in caplog.text
    records = DatasetCatalog.get("town_sem_seg_train")
    assert records[1] == {"file_name": f"{tmp_path}/rgb/b.png", "image_id": "b", "dataset": "town_sem_seg_train"}
    assert labeled_records(["town_sem_seg_train"]) == records[:1]
    save(tmp_path / "more" / "a.png", [[0]])
    with pytest.raises(DataError, match=r"splits\.train\.unlabeled"):
        DatasetCatalog.get("town_sem_seg_train")
    (tmp_path / "rgb" / "a.png").rename(tmp_path / "rgb" / "d.png")
    (tmp_path / "ids" / "a_ids.png").rename(tmp_path / "ids" / "d_ids.png")
    assert len(DatasetCatalog.get("town_sem_seg_train")) == 4  # control


def test_a_split_of_unlabeled_images_alone(tmp_path: Path) -> None:
    frames(tmp_path, "a", "b", ids=False)
    (tmp_path / "few.txt").write_text("b\n")
    split = {"unlabeled": "rgb/{stem}.png", "list": "few.txt"}
    assert stems_of(write(tmp_path, splits={"train": split})) == {"b": False}
    with pytest.raises(UserError, match="town_sem_seg_train"):
        labeled_records(["town_sem_seg_train"])


@pytest.mark.parametrize("link", ["a folder", "a file"])
def test_a_link_that_leads_out_of_the_root_is_followed(tmp_path: Path, link: str) -> None:
    """Images on one disk, labels on another."""
    save(tmp_path / "elsewhere" / "a.png", [[0]])
    save(tmp_path / "root" / "ids" / "a_ids.png", [[7]])
    if link == "a folder":
        (tmp_path / "root" / "rgb").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    else:
        (tmp_path / "root" / "rgb").mkdir()
        (tmp_path / "root" / "rgb" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    register_custom(write(tmp_path, root="root"))
    (record,) = DatasetCatalog.get("town_sem_seg_train")
    assert read_pair(record, label_space_of("town_sem_seg_train"))[1].tolist() == [[0]]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        register_custom(tmp_path / "gone.yaml")
    register_custom(write(tmp_path))  # nothing on disk is looked at yet
    for path, kind, match in (
        ("rgb/a.png", FileNotFoundError, r"town\.yaml: splits\.train\.images"),
        ("rgb/b.png", FileNotFoundError, r"splits\.train\.labels"),
        ("ids/b_ids.png", DataError, "rgb/a.png"),  # alone
    ):
        if path != "rgb/a.png":
            save(tmp_path / "rgb/a.png", [[0]])
            save(tmp_path / path, [[7]])
        with pytest.raises(kind, match=match):
            DatasetCatalog.get("town_sem_seg_train")
