"""Input images of folders, lists, splits and videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.helpers.errors import refuses
from tmt_d2.cli.common import check_output_folder
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.data.reader import DataError
from tmt_d2.errors import UserError
from tmt_d2.inference.images import find_images

NAMES = ["a/1", "a/2", "b/1"]


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((33, 50, 3), np.uint8))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in NAMES:
        write(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "notes.md").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 40))
    for shade in (0, 100, 200):
        writer.write(np.full((40, 64, 3), (0, 0, shade), np.uint8))  # BGR: red
    writer.release()
    return path


@pytest.fixture
def split(photos: Path) -> Iterator[str]:
    files = [{"file_name": str(photos / f"{name}.png"), "dataset": "photos_val"} for name in NAMES]
    register_split("photos_val", lambda: files, TRAIN_IDS)
    yield "photos_val"
    DatasetCatalog.remove("photos_val")
    MetadataCatalog.remove("photos_val")


def names(place: object) -> list[str]:
    return [image.name for image in find_images(str(place))]


def test_folders_splits_and_lists(photos: Path, split: str, tmp_path: Path) -> None:
    folder = find_images(str(photos))
    assert names(photos) == names(split) == NAMES and (len(folder), folder.left_out) == (3, 1)
    (tmp_path / "some.txt").write_text("photos/b/1.png\n\nphotos/a/2.png\nphotos/b/1.png\nphotos/gone.png\n")
    listed = list(find_images(str(tmp_path / "some.txt")))
    assert [image.name for image in listed] == ["b/1", "a/2", "gone"]  # each once
    assert listed[0].read("RGB").shape == (33, 50, 3)
    with pytest.raises(DataError, match="gone.png"):
        listed[2].read("RGB")


def test_names_are_unique(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        write(tmp_path / name)
    assert names(tmp_path) == ["a.jpg", "a.png", "b"]
    write(tmp_path / "a.png.jpg")
    assert len(set(names(tmp_path))) == 4


def test_frames_of_a_video(video: Path) -> None:
    frames = find_images(str(video))
    assert len(frames) == 3 and names(video) == ["000000", "000001", "000002"]
    colors = [frame.read("RGB").mean((0, 1)) for frame in frames]
    assert [round(red / 100) for red, _, _ in colors] == [0, 1, 2] and colors[2][2] < 20


def test_a_video_shorter_than_its_header_states(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = video.read_bytes()
    video.write_bytes(data[: data.rfind(b"00dc", 0, data.rfind(b"idx1")) - 40])
    assert 0 < len([frame.read("RGB") for frame in find_images(str(video))]) < 3
    assert video.name in caplog.text


def test_places_without_an_image(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "cut.mp4").write_bytes(b"no video")
    for name in ("empty", "none.txt", "cut.mp4"):
        with pytest.raises(UserError, match=name):
            find_images(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_images(str(tmp_path / "nowhere"))


def test_outputs_are_not_written_into_the_input(photos: Path) -> None:
    check_output_folder(photos.parent / "out", str(photos), "--input")
    with refuses("--output"):
        check_output_folder(photos / "out", str(photos), "--input")
