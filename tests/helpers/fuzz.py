"""Mutated inputs of every kind that a user may hand over, and what is allowed to happen with them."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from tests.helpers.checkout import ROOT, TINY_CONFIG
from tmt_d2 import setup_cfg
from tmt_d2.adaptation.checks import check_task
from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.errors import one_line_errors

SECONDS = 20  # per input
TOKENS = (
    b"", b"0", b"-1", b"1e999", b".nan", b"null", b"[]", b"{}", b"''", b"~",
    b"!!python/object/apply:os.system ['touch ran']", b"&a [*a]", b"../../../..", b"\x00", b"\xff\xfe", b"\t",
    b": :", b"- -", b"9" * 400, b"*", b"{stem}", b"%s%n", b"True",
)  # fmt: skip


def mutate(content: bytes, chance: random.Random) -> bytes:
    """One to three changes: bytes flipped, cut, doubled or inserted, a line moved, a value replaced."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.choice((1, 4, 60, 1000)))
        kind = chance.randrange(6)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place:end]
        elif kind == 2:
            data[place:place] = data[place:end] * chance.choice((1, 50))
        elif kind == 3:
            data[place:place] = chance.choice(TOKENS)
        elif kind == 4:
            lines = bytes(data).split(b"\n")
            line = chance.randrange(len(lines))
            key, colon, _ = lines[line].partition(b":")
            lines[line] = key + colon + b" " + chance.choice(TOKENS)
            data = bytearray(b"\n".join(lines))
        else:
            del data[place:]
    return bytes(data)


def try_config(folder: Path, chance: random.Random) -> None:
    model, method = (
        TINY_CONFIG,
        ROOT / "configs" / "methods" / chance.choice(("source.yaml", "tmt.yaml", "estimator.yaml")),
    )
    changed = chance.choice((model, method))
    text = changed.read_bytes().replace(b'_BASE_: "', f'_BASE_: "{changed.parent}/'.encode())
    (folder / changed.name).write_bytes(mutate(text, chance))
    files = [folder / path.name if path == changed else path for path in (model, method)]
    check_task(setup_cfg(files[0], method=files[1]))


def try_image_pair(folder: Path, chance: random.Random) -> None:
    pixels = np.random.default_rng(chance.randrange(10**6)).integers(7, 34, (40, 60), np.uint8)
    image = cv2.imencode(chance.choice((".png", ".jpg")), np.stack([pixels] * 3, -1))[1].tobytes()
    label = cv2.imencode(".png", pixels)[1].tobytes()
    which = chance.randrange(2)
    (folder / "image").write_bytes(image if which else mutate(image, chance))
    (folder / "label.png").write_bytes(mutate(label, chance) if which else label)
    mapper = SemanticMapper(is_train=True, label_spaces={"d": CITYSCAPES}, min_sizes=(24,), max_size=64)
    sample = mapper(
        {"file_name": str(folder / "image"), "sem_seg_file_name": str(folder / "label.png"), "dataset": "d"}
    )
    assert sample["image"].shape[1:] == sample["sem_seg"].shape


def try_checkpoint(folder: Path, chance: random.Random) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 5)
    state = {"model": model.state_dict(), "trainer": {"iteration": 3}}
    name, buffer = chance.choice(("model.pth", "model.pkl", "model.pyth")), io.BytesIO()
    if name.endswith("pkl"):
        arrays = {key: value.numpy() for key, value in state["model"].items()}
        buffer.write(pickle.dumps({"model": arrays, "__author__": "x"}))
    else:
        torch.save(state | {"model_state": state["model"]}, buffer)
    (folder / name).write_bytes(mutate(buffer.getvalue(), chance))
    TMTCheckpointer(model, str(folder / "out")).resume_or_load(str(folder / name), resume=False)


def try_custom_data(folder: Path, chance: random.Random) -> None:
    text = b"""name: fuzzed
root: data
splits:
  train: {images: "rgb/{stem}.png", labels: "ids/{stem}_ids.png"}
train_ids: {7: road, 8: sidewalk, 26: 13}
ignore_ids: [0, 255]
"""
    for place in ("data/rgb/a.png", "data/ids/a_ids.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(b"x")
    (folder / "data.yaml").write_bytes(mutate(text, chance))
    data_set = read_custom(folder / "data.yaml")
    for split in data_set.splits:
        for pair in data_set.listing(split).pairs.values():
            assert all(Path(path).resolve().is_relative_to(data_set.root) for path in pair)


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "config": try_config,
    "image pair": try_image_pair,
    "checkpoint": try_checkpoint,
    "data set": try_custom_data,
}


class Hang(BaseException):
    pass


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def run(kind: str, seed: int, folder: Path) -> str:
    """Try one input. Returns "" or the one line with which it was refused; raises AssertionError for anything else."""
    around, stderr = {path.name for path in folder.parent.iterdir()}, io.StringIO()
    status: Any = 0
    with contextlib.redirect_stderr(stderr), time_limit(SECONDS):
        try:
            with one_line_errors():
                KINDS[kind](folder, random.Random(f"{kind} {seed}"))
        except SystemExit as exit_:
            status = exit_.code
    told = stderr.getvalue()
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert status in (0, 2), f"{kind} {seed}: {told}"
    assert (len(lines) == 1 and len(lines[0]) < 1000) if status else not lines, f"{kind} {seed}: {told}"
    assert "Traceback" not in told, f"{kind} {seed}: {told}"
    assert {path.name for path in folder.parent.iterdir()} == around, f"{kind} {seed}: wrote outside its folder"
    assert not Path("ran").exists(), f"{kind} {seed}: ran code"
    return lines[0] if lines else ""
