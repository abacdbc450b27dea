"""Commands: start from a checkout, arguments, nearest names, and their end: in one line or with a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tmt_d2
from tests.helpers.checkout import ROOT, TINY_CONFIG, run_python
from tests.helpers.errors import refuses
from tmt_d2.cli import score, train, train_matrix, train_pair
from tmt_d2.cli.common import add_overrides, parse
from tmt_d2.data.datasets.registration import check_registered
from tmt_d2.errors import UserError, did_you_mean, one_line_errors
from tmt_d2.inference.images import find_images

CONFIG = str(TINY_CONFIG)
MODULES = ("datasets.check", "datasets.render", "demo.figures", "demo.run")
MODULES += ("tmt_d2.cli.export", "tmt_d2.projects.huggingface.convert")
SCRIPTS = ("train_net.py", "demo/app.py", "demo/visualize_attention.py")
SCRIPTS += tuple(f"tools/{path.name}" for path in sorted((ROOT / "tools").glob("[a-z]*.py")))


START_ALL = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            (runpy.run_path if name.endswith(".py") else runpy.run_module)(name, run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, name
    assert output.getvalue().startswith("usage: "), name
"""


@pytest.mark.slow
def test_every_command_starts_from_the_checkout() -> None:
    answer = run_python("-c", START_ALL, *SCRIPTS, *MODULES)
    assert answer.returncode == 0, answer.stderr


def test_processes_of_tests_import_this_checkout() -> None:
    here = str(ROOT / "tmt_d2" / "__init__.py")
    assert tmt_d2.__file__ == here
    answer = run_python("-c", "import importlib.util; print(importlib.util.find_spec('tmt_d2').origin)")
    assert answer.stdout.strip() == here, answer.stderr


def ending(fail: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop, one_line_errors():
        fail()
    return int(stop.value.code), capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "part"),
    [
        (UserError("KEY is 3: choose 4"), 2, "KEY is 3: choose 4"),
        (FileNotFoundError(2, "No such file", "b.yaml"), 2, "b.yaml"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_user_errors_are_one_line(
    error: BaseException, status: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, text = ending(raising(error), capsys)
    assert found == status and part in text and text.count("\n") == 1


@pytest.mark.parametrize(
    "mistake", [lambda: np.zeros(3).reshape(2, 2), lambda: [1].remove(2), raising(ValueError("ours"))]
)
def test_a_value_error_of_a_library_keeps_its_traceback(
    mistake: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = ending(mistake, capsys)
    assert status == 1
    assert "Traceback (most recent call last)" in text
    assert "ValueError" in text.splitlines()[-1]


def test_overrides_may_stand_anywhere() -> None:
    plain = argparse.ArgumentParser()
    plain.add_argument("--methods", nargs="+")
    plain.add_argument("--flag", action="store_true")
    add_overrides(plain)
    words = ["SEED", "-1", "--methods", "full", "tmt", "--flag", "MODEL.CONFIG.P_T", "0", "OUTPUT_DIR", "out"]
    args = parse(plain, words)
    assert args.methods == ["full", "tmt"] and args.flag
    assert args.opts == ["SEED", "-1", "MODEL.CONFIG.P_T", "0", "OUTPUT_DIR", "out"]
    words = ["--config-file", "a.yaml", "NEW_SECTION.KEY", "3", "--resume", "--num-gpus", "2", "--method", "tmt"]
    args = parse(train.parser(), words)
    assert args.resume and args.num_gpus == 2 and args.method == "tmt" and args.opts == ["NEW_SECTION.KEY", "3"]
    assert parse(plain, ["--methods", "full", "--", "SEED", "3"]).opts == ["SEED", "3"]
    for words in (["SEED"], ["SEED", "--flag"]):
        with refuses("SEED"):
            parse(plain, words)


def test_the_nearest_name() -> None:
    assert did_you_mean("cityscape", ["gtav", "cityscapes"]) == "; did you mean cityscapes?"
    assert did_you_mean("x", ["gtav"]) == ""
    with pytest.raises(UserError, match="KEY.* gtav_sem_seg_train"):
        check_registered("gtav_sem_seg_trian", "KEY")
    with pytest.raises(FileNotFoundError, match="gtav_sem_seg_val"):
        find_images("gtav_sem_seg_vla")


def run(command: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *words])
    command.main()


def test_commands_know_the_nearest_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring = ["--config-file", CONFIG, "--checkpoints", CONFIG]  # a file that is there
    with pytest.raises(UserError, match="--target.* cityscapes_sem_seg_train"):
        run(score, monkeypatch, *scoring, "--target", "cityscape")
    with pytest.raises(UserError, match="--sources.* bdd100k_sem_seg_train"):
        run(score, monkeypatch, *scoring, "--target", "gtav", "--sources", "bdd100")
    pair = ["--model", CONFIG, "--output", str(tmp_path / "out"), "--source", "gta", "--target", "bdd100k"]
    with pytest.raises(UserError, match="gta.* gtav_sem_seg_train"):
        run(train_pair, monkeypatch, *pair)
    (tmp_path / "matrix.yaml").write_text(f"model: {CONFIG}\npairs: [gtav-bdd100]\nmethods: [full]\n")
    matrix = ["--config", str(tmp_path / "matrix.yaml"), "--output", str(tmp_path / "out"), "--dry-run"]
    with pytest.raises(UserError, match="gtav-bdd100.* bdd100k_sem_seg_train"):
        run(train_matrix, monkeypatch, *matrix)
    (tmp_path / "matrix.yaml").write_text(f"model: {CONFIG}\npairs: [gtav-bdd100k]\nmethods: [ful]\n")
    with pytest.raises(UserError, match="did you mean full"):
        run(train_matrix, monkeypatch, *matrix)
    assert not (tmp_path / "out").exists()
