"""The estimate of time, before units run and while they do."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.small_runs import small_units, write_values
from tmt_d2.experiments.progress import Progress, TimeEstimate


def test_time_is_estimated_from_units_that_are_done(tmp_path: Path) -> None:
    units = small_units(tmp_path, seeds=[1, 2])
    tuned = [unit for unit in units if unit.about.get("method") == "tmt"]
    write_values(tuned[0])
    tuned[0].write_record(50)
    estimate = TimeEstimate(tuned[:1], {"iteration": 100.0, "evaluation": 7.0})
    assert estimate.seconds(tuned[1]) == 50
    by_kind = {unit.kind: unit for unit in units}
    assert estimate.seconds(by_kind["source"]) == 2 * 100 + 7
    assert estimate.seconds(by_kind["evaluation"]) == 7
    assert TimeEstimate([], {}).seconds(by_kind["source"]) is None


def test_unknown_times_are_not_left_out(tmp_path: Path) -> None:
    units = small_units(tmp_path, scores={})
    assert Progress(units, tmp_path, {}).summary() == "0 of 6 done, about ? left"
    guess = {"evaluation": 90}  # of the evaluation and the scores, not of the others
    assert Progress(units, tmp_path, guess).summary() == "0 of 6 done, about 3 min 00 s + ? left"
    assert not (tmp_path / "out").exists()  # nothing is written
