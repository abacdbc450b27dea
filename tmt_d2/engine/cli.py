"""What the commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

USER_ERROR = 2  # exit status of a command that was given something it cannot use


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors that a user can mend end the command with one line on stderr and status 2.

    With TMT_TRACEBACK=1 in the environment they end it with Python's traceback instead.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, FloatingPointError) as error:
        if os.environ.get("TMT_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        else:
            message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)  # noqa: T201  this is the command's answer
        sys.exit(USER_ERROR)
