"""Images of a folder, and files whose names or sizes are unusual."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from tmt_d2.data.datasets.layouts import find
from tmt_d2.data.image_files import image_files
from tmt_d2.data.mapper import model_input
from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_links_are_followed_once_and_hidden_names_left_out(tmp_path: Path) -> None:
    photos, disk = tmp_path / "photos", tmp_path / "disk"
    touch(photos / "a.JPG", photos / "b.txt", photos / "._a.JPG", photos / ".ipynb_checkpoints/a.jpg", disk / "c.png")
    os.symlink(disk, photos / "night")
    os.symlink(photos, photos / "circle")
    os.symlink(tmp_path / "nowhere.png", photos / "broken.png")
    assert image_files(photos) == ([photos / "a.JPG", photos / "night" / "c.png"], 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        image_files(tmp_path / "empty")


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "a.png", tmp_path / "lost" / "b.png")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if os.path.basename(folder) == "lost":
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert image_files(tmp_path) == ([tmp_path / "a.png"], 0)
    assert str(tmp_path / "lost") in caplog.text


def test_the_case_of_a_suffix_does_not_matter_in_patterns(tmp_path: Path) -> None:
    touch(tmp_path / "rgb/a.jpg", tmp_path / "rgb/b.JPG", tmp_path / "rgb/C.jpeg")
    assert sorted(find(tmp_path, "rgb/{stem}.jpg")) == ["a", "b"]


@pytest.mark.parametrize("size", [(3000, 2), (1, 1100)])
def test_an_image_far_longer_than_wide_has_a_pixel_left(size: tuple[int, int]) -> None:
    shape = model_input(np.zeros((*size, 3), np.uint8), 64, 96)["image"].shape
    assert min(shape[1:]) == 1 and max(shape[1:]) == 96


def test_text_may_mention_names_that_are_not_utf8(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "t.csv", "w") as file:
        file.write(os.fsdecode(b"stra\xdfe.jpg"))
    assert "stra" in (tmp_path / "t.csv").read_text(encoding="utf-8")
