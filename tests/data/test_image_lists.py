"""Lists of images are read as they were written, and as other programs write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tmt_d2.data.image_lists import listed_indices, listed_names, write_names
from tmt_d2.data.labeled import listed
from tmt_d2.errors import UserError

SEPARATE = frozenset(b"\0/")
NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not SEPARATE & {*name}).map(os.fsdecode)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.lists(NAMES | st.text("# \t\"\\'\r\n\u2028\ufeffa.", min_size=1), min_size=1, unique=True))
@example(["#0.jpg", " a.jpg", "a #1.jpg", '"a".jpg', '"a"', "\ufeffa", "a\nb", "a\u2028b", os.fsdecode(b"stra\xdfe")])
def test_what_is_written_is_read(tmp_path: Path, names: list[str]) -> None:
    write_names(tmp_path / "list.txt", names)
    assert listed_names("list", tmp_path / "list.txt") == names
    (tmp_path / "list.txt").read_text(encoding="utf-8")  # whatever the names are


def test_lists_of_other_programs(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbfa.jpg\r\n# no\r\n  b.jpg  # yes\r\n\r\n#c.jpg\r\na.jpg\r\nstra\xdfe.jpg")
    assert listed_names("list", file) == ["a.jpg", "b.jpg", os.fsdecode(b"stra\xdfe.jpg")]
    assert listed_names("list", file, {"#c.jpg"}.__contains__)[2] == "#c.jpg"
    file.write_bytes("a.jpg".encode("utf-16"))
    with pytest.raises(UserError, match=r"list\.txt"):
        listed_names("list", file)


def test_paths_mean_the_same_image_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("disk/a", "disk/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "p.jpg").touch()
    (tmp_path / "link").symlink_to("disk")
    records = [{"file_name": str(tmp_path / "disk" / name / "p.jpg"), "image_id": name} for name in "ab"]
    for line in ("disk/b/p.jpg", "link/b/p.jpg", str(tmp_path / "link/b/p.jpg"), "./disk/a/../b/p.jpg", "b"):
        write_names("list.txt", [line])
        assert listed(records, "list.txt") == records[1:]
    write_names("list.txt", ["p.jpg"])
    with pytest.raises(UserError, match=r"list\.txt"):
        listed(records, "list.txt")
    paths = [record["file_name"] for record in records]
    write_names("list.txt", ["a/p.jpg", "c"])
    assert listed_indices("list", "list.txt", paths, [[], []], ["disk"], subset=True) == ([0], ["c"])
    with pytest.raises(UserError, match="c"):
        listed_indices("list", "list.txt", paths, [[], []], ["disk"])
    write_names("list.txt", ["c"])
    with pytest.raises(UserError, match="c"):
        listed_indices("list", "list.txt", paths, [[], []], subset=True)
