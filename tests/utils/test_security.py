"""Hostile files: nothing in them is executed, and no path in them leads out of where it belongs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.checkout import TINY_CONFIG
from tmt_d2 import setup_cfg
from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.engine.checkpoint.files import DamagedCheckpoint
from tmt_d2.errors import UserError


class Command:
    """Runs a shell command when it is unpickled by an ordinary unpickler."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


class Builtin:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, ("__import__('os').system('touch ran')",)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hostile_files() -> dict[str, bytes]:
    saved = io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(2)}, "trainer": Command("touch ran")}, saved)
    zipped = io.BytesIO()  # a checkpoint whose pickle was exchanged, with right checksums
    with zipfile.ZipFile(io.BytesIO(saved.getvalue())) as old, zipfile.ZipFile(zipped, "w") as new:
        for info in old.infolist():
            name = info.filename
            new.writestr(name, pickle.dumps(Builtin(), 2) if name.endswith("data.pkl") else old.read(name))
    plain = {"model": {"weight": np.zeros(2)}, "__author__": "x"}
    objects = np.empty(1, object)
    objects[0] = Command("touch ran")
    return {
        "in_trainer.pth": saved.getvalue(),
        "exchanged.pth": zipped.getvalue(),
        "bare.pth": pickle.dumps(Command("touch ran"), 2),
        "extra.pkl": pickle.dumps(plain | {"extra": Command("touch ran")}),
        "object_array.pkl": pickle.dumps({"model": {"weight": objects}, "__author__": "x"}),
        "builtin.pkl": pickle.dumps({"model": Builtin()}),
        "state.pyth": pickle.dumps({"model_state": Command("touch ran")}, 2),
    }


@pytest.mark.parametrize("name", hostile_files())
def test_checkpoints_execute_nothing(name: str, tmp_path: Path) -> None:
    content = hostile_files()[name]
    Path(name).write_bytes(content)
    with pytest.raises(DamagedCheckpoint) as error:
        TMTCheckpointer(nn.Linear(2, 2), str(tmp_path)).load(name)
    assert error.value.key == name and "\n" not in str(error.value)
    assert not Path("ran").exists()
    if name.endswith("pkl"):  # control: it is hostile
        pickle.loads(content)
        assert Path("ran").exists()


def test_a_hostile_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    Path("model_0000001.pth").write_bytes(hostile_files()["in_trainer.pth"])
    Path("last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(UserError):
        TMTCheckpointer(nn.Linear(2, 2), str(tmp_path)).resume_or_load("")
    assert not Path("ran").exists()


@pytest.mark.parametrize("tag", ["../outside.pth", "/etc/passwd"])
def test_last_checkpoint_does_not_lead_out_of_its_folder(tmp_path: Path, tag: str) -> None:
    (tmp_path / "run").mkdir()
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "outside.pth")
    (tmp_path / "run" / "last_checkpoint").write_text(tag)
    assert TMTCheckpointer(nn.Linear(2, 2), str(tmp_path / "run")).resumable() == []


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "!!python/object/apply:eval [\"__import__('os').system('touch ran')\"]",
        '!!python/object/apply:eval ["[int(x * 0.1 * 1024) for x in range(5, 10**9)]"]',
        "!!python/object/new:os.system ['touch ran']",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_configs_and_data_sets_execute_nothing(value: str) -> None:
    Path("hostile.yaml").write_text(f"SEED: 1\nINPUT:\n  MIN_SIZE_TRAIN: {value}\n")
    with pytest.raises(UserError, match="hostile.yaml"):
        setup_cfg("hostile.yaml")
    Path("data.yaml").write_text(f"name: x\nsplits: {value}\n")
    with pytest.raises(UserError, match="data.yaml"):
        read_custom("data.yaml")
    assert not Path("ran").exists()


def test_overrides_execute_nothing() -> None:
    with pytest.raises(UserError, match="SEED"):
        setup_cfg(TINY_CONFIG, ["SEED", "__import__('os').system('touch ran')"])
    assert not Path("ran").exists()
