"""Errors that a person can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Something that was given cannot be used; the message is one line with the value, where it stands, and a way out.

    Commands end with that line and status 2. A ValueError that is none of these, of the mathematics here or of a
    library, is a mistake of the program: it keeps its traceback, and the status is 1.
    """
