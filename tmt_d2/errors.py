"""Errors that the user can fix."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

UNSET: Any = object()  # default of ``value``: None is a value


class UserError(ValueError):
    """An invalid input. Commands print its one line and exit with status 2.

    Any other ValueError is a bug: it keeps its traceback, and the status is 1.

    Attributes:
        message: the problem, without key, value and hint.
        key: the config key, command-line option or file that is wrong.
        value: the value received.
        hint: a way to fix it.
    """

    def __init__(self, message: str = "", *, key: object = "", value: object = UNSET, hint: str = "") -> None:
        """Render "KEY is VALUE: MESSAGE: HINT" without the parts that are missing."""
        self.message, self.key, self.hint = message, str(key), hint
        self.value = None if value is UNSET else value
        subject = self.key if value is UNSET else f"{key} is {value!r}"
        super().__init__(": ".join(part for part in (subject, message, hint) if part))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for a message about the unknown ``name``; "" if no known name is similar."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


USER_ERROR = 2  # exit status after an invalid input
INTERRUPTED = 130  # exit status after Ctrl-C, as in shells
USER_ERRORS = (UserError, OSError, FloatingPointError)  # the last: a loss that is not finite


def one_line(error: BaseException) -> str:
    """Return the message without line breaks, and without the traceback that a loader process adds."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    message = str(error).strip()
    if "\nOriginal Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split()) or type(error).__name__


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print one line on stderr and exit with status 2 for an error of ``USER_ERRORS``.

    With TMT_TRACEBACK=1 in the environment the traceback is printed instead. Any other error is a bug: its traceback is
    followed by one line, and the status is 1. Ctrl-C exits with status 130, unless it is handled as a request to stop.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("TMT_TRACEBACK"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        traceback.print_exc()
        summary = f"error: unexpected {type(error).__name__}: {one_line(error)}"
        print(summary, file=sys.stderr, flush=True)
        sys.exit(1)
