"""What a test expects of an error of the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tmt_d2.errors import UserError

ANY = object()


@contextmanager
def refuses(key: str, value: Any = ANY) -> Iterator[None]:
    """The body must raise a ``UserError`` about ``key``, and about ``value`` where one is given."""
    with pytest.raises(UserError) as error:
        yield
    assert error.value.key == key
    assert value is ANY or error.value.value == value
