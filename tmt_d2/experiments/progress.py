"""Progress of units and the time that is left: a table, a line, and ``progress.txt`` in the output folder."""

from __future__ import annotations

import logging
import statistics
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from tmt_d2.errors import UserError
from tmt_d2.experiments.units import Unit
from tmt_d2.utils.files import atomic_write

logger = logging.getLogger(__name__)


class Progress:
    """State of each unit: waiting, running, elsewhere (run by another process), done or failed.

    Creating one writes nothing; ``set`` writes ``progress.txt``.

    Attributes:
        failures: reasons by name of the unit. first_error: the first exception behind them.
    """

    def __init__(self, units: Sequence[Unit], output: Path, guess: Mapping[str, float]):
        """
        Args:
            guess: as in ``Plan``.

        Raises:
            UserError: folders hold units of other settings.
        """
        self.units, self.output, self.guess = units, output, guess
        self.state = _states(units)
        self.failures: dict[str, str] = {}
        self.first_error: BaseException | None = None

    def waiting(self) -> list[Unit]:
        """Return the units that are neither finished nor run by this process."""
        return [unit for unit in self.units if self.state[unit.name] in ("waiting", "elsewhere")]

    def update(self) -> None:
        """Look for units that other processes have finished."""
        for unit in self.waiting():
            if unit.is_done():
                self.state[unit.name] = "done"

    def set(self, unit: Unit, state: str) -> None:
        self.state[unit.name] = state
        self.update()
        self.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.output / "progress.txt", "w") as file:
            file.write(f"{self.text()}\n")

    def fail(self, unit: Unit, reason: str, error: BaseException | None = None) -> None:
        self.failures[unit.name] = reason
        self.first_error = self.first_error or error
        _release(error)
        self.set(unit, "failed")

    def text(self) -> str:
        """Return a table of the units and the summary."""
        estimate = self._estimate()
        rows = []
        for unit in self.units:
            is_done = self.state[unit.name] == "done"
            seconds = unit.record()["seconds"] if is_done else estimate.seconds(unit)
            result = headline(unit) if is_done else ""
            rows.append((unit.name, self.state[unit.name], total_time([seconds]), result))
        table = tabulate(rows, ("unit", "state", "time", "result"), colalign=("left", "left", "right", "left"))
        return f"{table}\n\n{self.summary()}"

    def summary(self) -> str:
        """Return one line: the number of units that are done, and the time of the others, one after the other."""
        states = list(self.state.values())
        text = f"{states.count('done')} of {len(states)} done"
        if states.count("failed"):
            text += f", {states.count('failed')} failed"
        left = [unit for unit in self.units if self.state[unit.name] not in ("done", "failed")]
        estimate = self._estimate()
        return text + (f", about {total_time([estimate.seconds(unit) for unit in left])} left" if left else "")

    def log(self, news: str) -> None:
        logger.info("%s; %s", news, self.summary())

    def _estimate(self) -> TimeEstimate:
        return TimeEstimate([unit for unit in self.units if self.state[unit.name] == "done"], self.guess)


def _release(error: BaseException | None) -> None:
    """Empty the frames that an error and those before it keep alive, so that a failed unit's model is freed."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        traceback.clear_frames(error.__traceback__)
        seen.append(error)
        error = error.__cause__ or error.__context__


def _states(units: Sequence[Unit]) -> dict[str, str]:
    """
    Raises:
        UserError: folders hold units of other settings; its key is the first of them, and the message names all units,
            for one change may concern many.
    """
    states: dict[str, str] = {}
    problems: dict[str, UserError] = {}
    for unit in units:
        try:
            states[unit.name] = "done" if unit.is_done() else "waiting"
        except UserError as error:
            problems[unit.name] = error
    if problems:
        first, *others = problems
        problem = problems[first]
        also = f"; likewise {', '.join(others)}" if others else ""
        raise UserError(f"{problem.message}{also}", key=problem.key, hint=problem.hint) from problem
    return states


def headline(unit: Unit) -> str:
    """Return the result of a unit that is done, in a few words."""
    values = unit.values()
    if unit.kind == "scores":
        return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    if unit.kind == "estimator":
        return "PAD " + ", ".join(f"{value:.2f}" for value in values["proxy_a_distance"])
    scores = [metrics.get("mIoU") for metrics in values.values()]  # None where no pixel of the split has a label
    return ", ".join("mIoU -" if score is None else f"mIoU {score:.1f}" for score in scores)


class TimeEstimate:
    """Seconds of a unit from units of the same kind and method that are done, or else from the plan's guess."""

    def __init__(self, done: Sequence[Unit], guess: Mapping[str, float]):
        self.guess = guess
        self.per_iteration: dict[tuple[str, str], list[float]] = {}
        for unit in done:
            seconds = unit.record()["seconds"] / self._iterations(unit)
            self.per_iteration.setdefault(self._group(unit), []).append(seconds)

    @staticmethod
    def _group(unit: Unit) -> tuple[str, str]:
        return "evaluation" if "weights" in unit.about else unit.kind, unit.about.get("method", "")

    @staticmethod
    def _iterations(unit: Unit) -> int:
        return 1 if unit.trains_nothing else unit.cfg.SOLVER.MAX_ITER

    def seconds(self, unit: Unit) -> float | None:
        """Return None where nothing is known."""
        measured = self.per_iteration.get(self._group(unit))
        if measured:
            return statistics.median(measured) * self._iterations(unit)
        evaluation = self.guess.get("evaluation")
        if unit.trains_nothing:
            return evaluation
        iteration = self.guess.get("iteration")
        return None if iteration is None else iteration * self._iterations(unit) + (evaluation or 0)


def total_time(seconds: Sequence[float | None]) -> str:
    """Return the sum as text; "?" stands for unknown values."""
    known = [value for value in seconds if value is not None]
    if seconds and not known:
        return "?"
    return clock(sum(known)) + (" + ?" if len(known) < len(seconds) else "")


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
