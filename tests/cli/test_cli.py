"""Start of the commands from a checkout, and their end: one line for user errors, else a traceback."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tmt_d2
from tests.helpers.checkout import ROOT, run_python
from tmt_d2.data.reader import DataError
from tmt_d2.errors import UserError, one_line_errors

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
    ("error", "line"),
    [
        (UserError("KEY is 3: choose 4"), "error: KEY is 3: choose 4\n"),
        (DataError("a.png: is empty"), "error: a.png: is empty\n"),
        (FileNotFoundError(2, "No such file", "b.yaml"), "error: b.yaml: No such file\n"),
    ],
)
def test_user_errors_are_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(raising(error), capsys) == (2, line)


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "mistake", [lambda: np.zeros(3).reshape(2, 2), lambda: [1].remove(2), raising(ValueError("ours"))]
)
def test_a_value_error_of_a_library_keeps_its_traceback(
    mistake: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = ending(mistake, capsys)
    assert status == 1
    assert "Traceback (most recent call last)" in text
    assert text.splitlines()[-1].startswith("error: unexpected ValueError: ")
