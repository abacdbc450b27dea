"""How commands end: one line for what a person can mend, a traceback for mistakes of the program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tmt_d2.cli import one_line_errors
from tmt_d2.data.reader import DataError
from tmt_d2.errors import UserError


def ending(fail: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop, one_line_errors():
        fail()
    return int(stop.value.code), capsys.readouterr().err


def raising(error: Exception) -> Callable[[], object]:
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
