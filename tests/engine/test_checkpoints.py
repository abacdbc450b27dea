"""Checkpoints: complete or absent, checked when read, the last few kept, and a fallback if the newest is damaged."""

from __future__ import annotations

import argparse
import errno
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.errors import refuses
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer, ended_after, keep_weights, read_state
from tmt_d2.engine.checkpoint.files import DamagedCheckpoint
from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write, remove_temporaries


class Counter:
    """A trainer whose state is a number."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def make(folder: Path, **options: Any) -> tuple[TMTCheckpointer, nn.Linear, Counter]:
    model, counter = nn.Linear(40, 40), Counter()
    return TMTCheckpointer(model, str(folder), trainer=counter, **options), model, counter


def save_series(folder: Path, iterations: range, **options: Any) -> TMTCheckpointer:
    checkpointer, model, counter = make(folder, **options)
    for counter.value in iterations:
        nn.init.constant_(model.weight, counter.value)
        checkpointer.save(f"model_{counter.value:07d}")
    return checkpointer


def resumed_value(folder: Path) -> int:
    checkpointer, model, counter = make(folder)
    checkpointer.resume_or_load("", resume=True)
    assert torch.all(model.weight == counter.value)  # weights and state are of one file
    return counter.value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("left", [0, 0.99])
def test_a_truncated_newest_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture, left: float) -> None:
    save_series(tmp_path, range(5))
    newest = tmp_path / "model_0000004.pth"
    content = newest.read_bytes()
    newest.write_bytes(content[: int(len(content) * left)])
    with caplog.at_level("WARNING"):
        assert resumed_value(tmp_path) == 3
    assert "model_0000004.pth" in caplog.text


def test_one_flipped_byte_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_series(tmp_path, range(2))
    newest = tmp_path / "model_0000001.pth"
    content = bytearray(newest.read_bytes())
    place = content.index(torch.full((4,), 1.0).numpy().tobytes()) + 1
    content[place] ^= 1  # 1.0 becomes 1.0000305
    newest.write_bytes(content)
    assert resumed_value(tmp_path) == 0
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: None)  # control: PyTorch takes it as it is
    model = nn.Linear(40, 40)
    TMTCheckpointer(model, str(tmp_path), trainer=Counter()).resume_or_load("", resume=True)
    assert (model.weight != 1).sum() == 1


def test_any_flipped_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    save_series(tmp_path, range(1))
    path = tmp_path / "model_0000000.pth"
    content, expected = path.read_bytes(), torch.load(path, weights_only=True)["model"]
    noticed = 0
    for place in range(0, len(content), len(content) // 150):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        checkpointer, model, _ = make(tmp_path)
        try:
            checkpointer.load(str(path), checkpointables=[])
        except DamagedCheckpoint:
            noticed += 1
        else:  # a byte between the parts of the file
            assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert noticed > 100


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    save_series(tmp_path, range(2))
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    with refuses(str(tmp_path)):
        resumed_value(tmp_path)


def test_another_architecture_is_no_damage(tmp_path: Path) -> None:
    save_series(tmp_path, range(2))
    checkpointer = TMTCheckpointer(nn.Conv2d(1, 1, 1), str(tmp_path), trainer=Counter())
    with pytest.raises(UserError) as caught:  # the one before it is not tried
        checkpointer.resume_or_load("", resume=True)
    assert not isinstance(caught.value, DamagedCheckpoint)
    assert checkpointer.checkpointables["trainer"].value == 0


@pytest.mark.parametrize("tag", [None, "model_0000009.pth", ""])
def test_a_lost_or_wrong_tag_is_made_good(tmp_path: Path, tag: str | None) -> None:
    save_series(tmp_path, range(3))
    (tmp_path / "last_checkpoint").unlink()
    if tag is not None:
        (tmp_path / "last_checkpoint").write_text(tag)
    assert resumed_value(tmp_path) == 2


def test_the_last_few_are_kept_beside_the_final_one(tmp_path: Path) -> None:
    checkpointer = save_series(tmp_path, range(7), keep=2)
    checkpointer.save("model_final")
    checkpointer.save("not_finite_0000003")
    assert names(tmp_path) == [
        "last_checkpoint", "model_0000005.pth", "model_0000006.pth", "model_final.pth", "not_finite_0000003.pth",
    ]  # fmt: skip
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_new_run_over_an_old_one_never_deletes_what_it_saves(tmp_path: Path) -> None:
    save_series(tmp_path, range(100, 103))
    for age, path in enumerate(sorted(tmp_path.glob("*.pth"))):
        os.utime(path, (1e9 + age, 1e9 + age))
    for last in range(3):
        save_series(tmp_path, range(last, last + 1))
        assert (tmp_path / (tmp_path / "last_checkpoint").read_text()).is_file()
        assert resumed_value(tmp_path) == last


class Trainer(Counter):
    """Its state is three times as large as the model's, as an optimizer's is."""

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.value, "optimizer": torch.ones(3, 40, 40)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["iteration"]


def end_run(folder: Path) -> nn.Linear:
    model, trainer = nn.Linear(40, 40), Trainer()
    checkpointer = TMTCheckpointer(model, str(folder), trainer=trainer, progress=nn.Linear(2, 2))
    for trainer.value in range(5):
        checkpointer.save(f"model_{trainer.value:07d}" if trainer.value < 4 else "model_final")
    return model


def test_an_ended_run_keeps_its_weights_only(tmp_path: Path) -> None:
    model = end_run(tmp_path)
    (tmp_path / "alignment").mkdir()
    end_run(tmp_path / "alignment")
    (tmp_path / "not_finite_0000002.pth").write_bytes(b"evidence")
    (tmp_path / "model_mine.pth").write_bytes(b"somebody's own")
    before = (tmp_path / "model_final.pth").stat().st_size
    assert ended_after(tmp_path) is None
    keep_weights(tmp_path)
    assert names(tmp_path) == [
        "alignment", "last_checkpoint", "model_final.pth", "model_mine.pth", "not_finite_0000002.pth",
    ]  # fmt: skip
    assert names(tmp_path / "alignment") == ["last_checkpoint"]
    assert ended_after(tmp_path) == 5
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert sorted(content) == ["ended_after", "model", "progress"]
    assert (tmp_path / "model_final.pth").stat().st_size < before / 2
    loaded = nn.Linear(40, 40)
    TMTCheckpointer(loaded).load(str(tmp_path / "model_final.pth"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    written = (tmp_path / "model_final.pth").stat().st_mtime_ns
    keep_weights(tmp_path)  # again: nothing to do
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == written


def test_a_damaged_final_checkpoint_is_not_made_to_look_whole(tmp_path: Path) -> None:
    end_run(tmp_path)
    path = tmp_path / "model_final.pth"
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(4).numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)
    before = names(tmp_path)
    with pytest.raises(DamagedCheckpoint, match="model_final.pth"):
        keep_weights(tmp_path)
    assert names(tmp_path) == before and path.read_bytes() == bytes(content)


def test_ended_after_reads_the_checkpoint_to_resume_from(tmp_path: Path) -> None:
    keep_weights(tmp_path)  # nothing here
    assert ended_after(tmp_path) is None
    end_run(tmp_path)
    keep_weights(tmp_path)
    save_series(tmp_path, range(1))  # a new run over the old one
    assert ended_after(tmp_path) is None
    (tmp_path / "model_0000000.pth").unlink()
    (tmp_path / "model_final.pth").write_bytes(b"damaged")
    assert ended_after(tmp_path) is None


class FullDisk:
    """Fails after some bytes, as a full disk does."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, 5000

    def write(self, data: bytes) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def test_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = save_series(tmp_path, range(1))
    before = (tmp_path / "model_0000000.pth").read_bytes()
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: save(state, FullDisk(file)))
    for name in ("model_0000000", "model_0000001"):
        with pytest.raises(OSError, match=f"{name}.pth") as error:
            checkpointer.save(name)
        assert error.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["last_checkpoint", "model_0000000.pth"]
    assert (tmp_path / "model_0000000.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


def test_temporary_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "inference").mkdir()
    dead = 2**22 + 1  # above the largest id that Linux gives
    with atomic_write(tmp_path / "x"):
        (name,) = (path.name for path in tmp_path.glob("*.tmp"))
    host, own = name.split(".")[2:4]
    assert own == str(os.getpid())
    litter = [
        tmp_path / f".model_0000001.pth.{host}.{dead}.0000000a.tmp",
        tmp_path / f"inference/.a.json.{host}.{dead}.00000009.tmp",
        tmp_path / f".model_0000001.pth.{dead}.tmp",  # of an earlier version
        tmp_path / f".d.json.{'0' * 8}.{dead}.00000009.tmp",  # of another machine, and old
    ]
    others = [tmp_path / "model.tmp", tmp_path / ".hidden", tmp_path / f".b.{host}.{os.getppid()}.00000000.tmp"]
    others.append(tmp_path / f".c.{'0' * 8}.{dead}.00000000.tmp")  # of another machine
    for path in [*litter, *others]:
        path.write_text("x")
    os.utime(litter[-1], (0, 0))
    remove_temporaries(tmp_path)
    assert not any(path.exists() for path in litter)
    assert all(path.exists() for path in others)


def test_a_temporary_file_may_vanish_while_it_is_looked_at(tmp_path: Path) -> None:
    """Another machine has just renamed it; here, a link to nothing."""
    (tmp_path / f".a.{'0' * 8}.1.00000000.tmp").symlink_to(tmp_path / "nowhere")
    remove_temporaries(tmp_path)


def test_processes_with_the_same_id_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Of two machines that write to a shared folder."""
    path = tmp_path / "progress.txt"
    with atomic_write(path, "w") as first:
        first.write("first")
        with atomic_write(path, "w") as second:
            second.write("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and names(tmp_path) == [path.name]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
        assert len(names(tmp_path)) == 2
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not found")
    torch.save({"model": {}, "args": argparse.Namespace(epochs=1)}, tmp_path / "timm.pth")
    for name in ("text.pth", "timm.pth"):
        with pytest.raises(DamagedCheckpoint) as error:
            read_state(str(tmp_path / name))
        assert error.value.key == str(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_state(str(tmp_path))


def test_settings_of_the_loss_are_those_of_the_config(build_tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    first = build_tiny("MaskFormer", MODEL__MASK_FORMER__NO_OBJECT_WEIGHT=0.1)
    file = tmp_path / "a.pth"
    torch.save({"model": first.state_dict()}, file)
    assert first.state_dict()["criterion.empty_weight"][-1] == pytest.approx(0.1)  # as in official files
    second = build_tiny("MaskFormer", MODEL__MASK_FORMER__NO_OBJECT_WEIGHT=0.5)
    TMTCheckpointer(second).load(str(file))
    assert second.criterion.empty_weight[-1] == 0.5
    second.load_state_dict(first.state_dict())
    assert second.criterion.empty_weight[-1] == 0.5
