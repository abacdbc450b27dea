"""Allowed values of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Interval of numbers; a list is in it if each of its items is.

    Attributes:
        above: ``low`` itself is excluded.
        below: ``high`` itself is excluded.
        count: required length of a list; 0: a number, or a list of any length.
        whole: whole numbers only.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = True
    count: int = 0
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        values = value if isinstance(value, (list, tuple)) else [value]
        return len(values) == (self.count or max(len(values), 1)) and all(map(self._has, values))

    def _has(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        low = self.low < value if self.above else self.low <= value
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        many = f"{self.count} numbers, each " if self.count else ""
        if math.isinf(self.high):
            return f"{many}{'above' if self.above else 'at least'} {self.low:g}"
        return f"{many}in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


NONNEGATIVE, POSITIVE, COUNT = Range(0), Range(0, above=True), Range(1, whole=True)
SHARE, RATE = Range(0, 1, below=False), Range(0, 1)
PART = Range(0, 1, above=True, below=False)
SIZES = Range(1, count=2, whole=True)
