"""Errors that a person can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that was given cannot be used; the message is one line with the value, where it stands, and a way out.

    Commands end with that line and status 2. A ValueError that is none of these, of the mathematics here or of a
    library, is a mistake of the program: it keeps its traceback, and the status is 1.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?", to be put behind a message about the unknown ``name``; empty where nothing is like it."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
