"""Errors that a person can mend."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

UNSET: Any = object()  # no value belongs to the error


class UserError(ValueError):
    """An input that cannot be used. Commands print its one line and exit with status 2.

    A ValueError of any other kind is a mistake of the program: it keeps its traceback, and the status is 1.

    Attributes:
        key: the config key, command-line option or file that is wrong.
        value: the value received.
        hint: what to do.
    """

    def __init__(self, message: str = "", *, key: object = "", value: object = UNSET, hint: str = "") -> None:
        """The text is "KEY is VALUE: MESSAGE: HINT", without the parts that are not given."""
        self.key, self.value, self.hint = str(key), None if value is UNSET else value, hint
        subject = self.key if value is UNSET else f"{key} is {value!r}"
        super().__init__(": ".join(part for part in (subject, message, hint) if part))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?", to be put behind a message about the unknown ``name``; empty where nothing is like it."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


USER_ERROR = 2  # exit status of a command that was given something it cannot use
INTERRUPTED = 130  # ... that ended by Ctrl-C with nothing to save, as shells have it
USER_ERRORS = (UserError, OSError, FloatingPointError)  # the last: a loss that is not finite


def one_line(error: BaseException) -> str:
    """What happened, without the traceback that a loader's process puts around it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    message = str(error).strip()
    if "\nOriginal Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split()) or type(error).__name__


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors that a user can mend end the command with one line on stderr and status 2.

    With TMT_TRACEBACK=1 in the environment they end it with Python's traceback instead. Any other error is a mistake
    of the program: its traceback is followed by one line that sums it up, and the status is 1. Ctrl-C is one line and
    status 130, where nothing takes it as a request to save and stop.
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
