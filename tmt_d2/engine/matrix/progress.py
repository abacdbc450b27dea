"""What became of the units so far, and how much is left: a table, a line, and ``progress.txt``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from ...files import atomic_write
from ..stages import RESULTS
from .estimate import Estimate, clock, recorded, total
from .units import SCORES_FILE, Unit

logger = logging.getLogger(__name__)


class Progress:
    """Which units are done, running (here or elsewhere), failed or waiting.

    Making one touches nothing; whenever a state is set, ``progress.txt`` in the output is written anew.
    """

    def __init__(self, units: Sequence[Unit], output: Path, guess: Mapping[str, float]):
        self.units, self.output, self.guess = units, output, guess
        self.state = {unit.name: "done" if unit.is_done() else "waiting" for unit in units}
        self.failures: dict[str, str] = {}

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

    def fail(self, unit: Unit, reason: str) -> None:
        self.failures[unit.name] = reason
        self.set(unit, "failed")

    def text(self) -> str:
        """A table of the units, and the summary."""
        estimate = self._estimate()
        rows = []
        for unit in self.units:
            state = self.state[unit.name]
            seconds = recorded(unit)["seconds"] if state == "done" else estimate.seconds(unit)
            rows.append((unit.name, state, total([seconds], clock), headline(unit) if state == "done" else ""))
        headers = ("unit", "state", "time", "result")
        return f"{tabulate(rows, headers, colalign=('left', 'left', 'right', 'left'))}\n\n{self.summary()}"

    def summary(self) -> str:
        """One line: how many are done, and how long the others will take one after the other."""
        states = list(self.state.values())
        text = f"{states.count('done')} of {len(states)} done"
        if states.count("failed"):
            text += f", {states.count('failed')} failed"
        left = [unit for unit in self.units if self.state[unit.name] not in ("done", "failed")]
        if not left:
            return text
        estimate = self._estimate()
        return f"{text}, about {total([estimate.seconds(unit) for unit in left], clock)} left"

    def _estimate(self) -> Estimate:
        return Estimate([unit for unit in self.units if self.state[unit.name] == "done"], self.guess)


def headline(unit: Unit) -> str:
    """The result of a unit that is done, in a few words."""
    if unit.kind == "scores":
        values = json.loads((unit.folder / SCORES_FILE).read_text())
        return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    if unit.kind == "estimator":
        values = json.loads((unit.folder / RESULTS["estimator"]).read_text())
        return "PAD " + ", ".join(f"{value:.2f}" for value in values["proxy_a_distance"])
    values = json.loads((unit.folder / RESULTS["source"]).read_text())
    return ", ".join(f"mIoU {metrics['mIoU']:.1f}" for metrics in values.values())
