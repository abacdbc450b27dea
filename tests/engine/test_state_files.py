"""The project's own files of state, damaged in every way: one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tmt_d2.engine.best import Best
from tmt_d2.engine.checkpoint.checkpointer import SUPERSEDED, TMTCheckpointer
from tmt_d2.errors import UserError
from tmt_d2.experiments.results import STAGE_RECORD, read_record, read_results, read_values
from tmt_d2.experiments.units import BEGINNING, read_beginning
from tmt_d2.utils.files import read_json, read_json_lines, read_npz, write_json

TEXTS = (b"", b"{", b"[1, 2]", b"null", b"\xff\xfe{}", b'{"a": 1}x', b"[" * 100_000)


def best_of(folder: Path) -> None:
    Best(folder, "mIoU", "val", 0).read(5)


def superseded(folder: Path) -> None:
    TMTCheckpointer(torch.nn.Linear(1, 1), str(folder)).resumable()


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "stage": (STAGE_RECORD, read_record),
    "begun": (BEGINNING, read_beginning),
    "evaluation": ("evaluation.json", lambda folder: read_values(folder, "finetune")),
    "scores": ("scores.json", lambda folder: read_values(folder, "scores")),
    "report": (STAGE_RECORD, read_results),
    "best": ("best.json", best_of),
    "superseded": (SUPERSEDED, superseded),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_damaged_json_is_named(name: str, text: bytes, tmp_path: Path) -> None:
    file, read = READERS[name]
    (tmp_path / file).write_bytes(text)
    with pytest.raises(UserError, match=file) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / file).read_bytes() == text


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1.5, None], "ü": "x"})
    assert read_json(tmp_path / "a.json", ["a"]) == {"a": [1.5, None], "ü": "x"}
    with pytest.raises(UserError, match="a.json"):
        read_json(tmp_path / "a.json", ["b"])
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


def test_a_line_that_was_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    lines = [{"iteration": i} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_json_lines(path) == lines
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="metrics.json.*line 3"):
        read_json_lines(path)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(40.0).reshape(5, 8), "names": np.array(["a", "bc"])}
    np.savez_compressed(path, **arrays)
    read = read_npz(path, ["x"])
    assert all(np.array_equal(read[key], value) for key, value in arrays.items())
    with pytest.raises(UserError, match="a.npz"):
        read_npz(path, ["y"])
    content, named = path.read_bytes(), 0
    for place in range(0, len(content), 7):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]):
            path.write_bytes(damaged)
            try:
                read_npz(path, ["x", "names"])
            except UserError as error:
                named += "a.npz" in str(error)
    assert named > len(content) / 7  # all that were cut, and more
    np.save(tmp_path / "plain.npy", arrays["x"])
    np.savez(tmp_path / "objects.npz", x=np.array([{}]))
    for other in ("plain.npy", "objects.npz"):
        with pytest.raises(UserError, match=other):
            read_npz(tmp_path / other)
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz")
