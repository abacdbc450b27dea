"""How commands start, from a checkout, and end: in one line for what a person can mend, else with a traceback."""

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


@pytest.mark.slow
@pytest.mark.parametrize("command", [*((name,) for name in SCRIPTS), *(("-m", name) for name in MODULES)], ids=" ".join)
def test_every_command_starts_from_the_checkout(command: tuple[str, ...]) -> None:
    answer = run_python(*command, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("usage: ")


def test_tests_and_their_processes_import_the_checkout_that_they_belong_to() -> None:
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
def test_what_a_person_can_mend_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
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
