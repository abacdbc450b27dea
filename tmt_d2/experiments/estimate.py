"""What units took, and what those that are missing will take: time and disk."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from tmt_d2.adaptation.methods import method_of
from tmt_d2.experiments.units import Unit


class Estimate:
    """Seconds and bytes of a unit, or None where nothing is known."""

    def __init__(self, done: Sequence[Unit], guess: Mapping[str, float]):
        """
        Args:
            done: units to learn from. guess: as in ``Plan``.
        """
        self.guess = guess
        self.measured: dict[tuple[str, str], list[float]] = {}
        self.sizes: dict[str, list[int]] = {}
        for unit in done:
            record = unit.record()
            self.measured.setdefault(self._sort(unit), []).append(record["seconds"] / self._size(unit))
            if "bytes" in record:  # earlier versions kept more of a unit than is kept now
                self.sizes.setdefault(unit.kind, []).append(record["bytes"])

    @staticmethod
    def _sort(unit: Unit) -> tuple[str, str]:
        return "evaluation" if "weights" in unit.about else unit.kind, unit.about.get("method", "")

    @staticmethod
    def _size(unit: Unit) -> int:
        if unit.trains_nothing:
            return 1
        aligned = unit.cfg.TRANSFER.ALIGNMENT.ITERATIONS if method_of(unit.cfg).raises else 0
        return unit.cfg.SOLVER.MAX_ITER + (aligned if unit.kind == "finetune" else 0)

    def seconds(self, unit: Unit) -> float | None:
        """From units of the same kind and method that are done, else from the guess."""
        measured = self.measured.get(self._sort(unit))
        if measured:
            return statistics.median(measured) * self._size(unit)
        evaluation = self.guess.get("evaluation")
        if self._size(unit) == 1:
            return evaluation
        iteration = self.guess.get("iteration")
        return None if iteration is None else iteration * self._size(unit) + (evaluation or 0)

    def bytes(self, unit: Unit) -> float | None:
        """What the unit will leave on disk, from those of the same kind that are done."""
        return statistics.median(self.sizes[unit.kind]) if unit.kind in self.sizes else None


def total(values: Sequence[float | None], text: Callable[[float], str]) -> str:
    """The sum as ``text`` writes it; what is not known is not left out silently."""
    known = [value for value in values if value is not None]
    if values and not known:
        return "?"
    return text(sum(known)) + (" and what is unknown (?)" if len(known) < len(values) else "")


def megabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
