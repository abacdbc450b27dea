"""What became of the units so far, and how much is left: a table, a line, and ``progress.txt``."""

from __future__ import annotations

import logging
import shutil
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from tmt_d2.errors import UserError
from tmt_d2.experiments.estimate import Estimate, clock, megabytes, total
from tmt_d2.experiments.units import Unit
from tmt_d2.utils.files import atomic_write

logger = logging.getLogger(__name__)


class Progress:
    """Which units are done, running (here or elsewhere), failed or waiting.

    Making one touches nothing; whenever a state is set, ``progress.txt`` in the output is written anew.
    """

    def __init__(self, units: Sequence[Unit], output: Path, guess: Mapping[str, float]):
        self.units, self.output, self.guess = units, output, guess
        self.state = _states(units)
        self.failures: dict[str, str] = {}
        self.first_error: BaseException | None = None
        self.warned = False

    def waiting(self) -> list[Unit]:
        """Those that nobody has finished and this process does not run."""
        return [unit for unit in self.units if self.state[unit.name] in ("waiting", "elsewhere")]

    def look(self) -> None:
        """See what other processes have done meanwhile."""
        for unit in self.waiting():
            if unit.is_done():
                self.state[unit.name] = "done"

    def set(self, unit: Unit, state: str) -> None:
        self.state[unit.name] = state
        self.look()
        self.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.output / "progress.txt", "w") as file:
            file.write(f"{self.text()}\n")

    def fail(self, unit: Unit, reason: str, error: BaseException | None = None) -> None:
        self.failures[unit.name] = reason
        self.first_error = self.first_error or error
        _release(error)
        self.set(unit, "failed")

    def text(self) -> str:
        """A table of the units, the summary, and the warning if there is one."""
        estimate = self._estimate()
        rows = []
        for unit in self.units:
            state = self.state[unit.name]
            seconds = unit.record()["seconds"] if state == "done" else estimate.seconds(unit)
            rows.append((unit.name, state, total([seconds], clock), headline(unit) if state == "done" else ""))
        headers = ("unit", "state", "time", "result")
        table = tabulate(rows, headers, colalign=("left", "left", "right", "left"))
        return "\n\n".join(filter(None, [table, self.summary(), self.warning()]))

    def summary(self) -> str:
        """One line: how many are done, and what the others will take: time one after the other, and disk."""
        states = list(self.state.values())
        text = f"{states.count('done')} of {len(states)} done"
        if states.count("failed"):
            text += f", {states.count('failed')} failed"
        left = self._left()
        if not left:
            return text
        estimate = self._estimate()
        text += f", about {total([estimate.seconds(unit) for unit in left], clock)} left"
        sizes = [estimate.bytes(unit) for unit in left]
        if any(sizes):
            text += f", {total(sizes, megabytes)} of disk to fill, {megabytes(self._free())} free"
        return text

    def warning(self) -> str:
        """One line if the units that are missing will not fit on the disk, as far as is known; else empty."""
        estimate = self._estimate()
        needed, free = sum(estimate.bytes(unit) or 0 for unit in self._left()), self._free()
        if needed <= free:
            return ""
        return (
            f"{self.output} is on a disk with {megabytes(free)} free, the missing units will take {megabytes(needed)}: "
            "free some, or choose another --output"
        )

    def log(self, news: str) -> None:
        """News and the summary, and the warning once."""
        logger.info("%s; %s", news, self.summary())
        warning = self.warning()
        if warning and not self.warned:
            logger.warning(warning)
            self.warned = True

    def _left(self) -> list[Unit]:
        return [unit for unit in self.units if self.state[unit.name] not in ("done", "failed")]

    def _free(self) -> int:
        """Bytes, where the output is or will be."""
        return shutil.disk_usage(next(path for path in (self.output, *self.output.parents) if path.exists())).free

    def _estimate(self) -> Estimate:
        return Estimate([unit for unit in self.units if self.state[unit.name] == "done"], self.guess)


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
        UserError: folders hold units of other settings; all are named, for one change may concern many.
    """
    states, problems = {}, {}
    for unit in units:
        try:
            states[unit.name] = "done" if unit.is_done() else "waiting"
        except UserError as error:
            problems[unit.name] = error
    first, *others = problems.values() or (None,)
    if first is not None:
        also = f"; likewise {', '.join([*problems][1:])}" if others else ""
        raise UserError(f"{first}{also}")
    return states


def headline(unit: Unit) -> str:
    """The result of a unit that is done, in a few words."""
    values = unit.values()
    if unit.kind == "scores":
        return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    if unit.kind == "estimator":
        return "PAD " + ", ".join(f"{value:.2f}" for value in values["proxy_a_distance"])
    scores = [metrics["mIoU"] for metrics in values.values()]  # None where no pixel of the split has a label
    return ", ".join("mIoU -" if score is None else f"mIoU {score:.1f}" for score in scores)
