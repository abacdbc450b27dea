"""What is said of time and disk, before units run and while they do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.small_runs import small_units, write_values
from tmt_d2.experiments import progress
from tmt_d2.experiments.estimate import Estimate
from tmt_d2.experiments.progress import Progress
from tmt_d2.experiments.units import Unit


def end(unit: Unit, seconds: float = 1, size: float | None = None) -> None:
    """As if the unit had been run, and left so many bytes."""
    write_values(unit)
    unit.write_record(seconds)
    if size is not None:
        (unit.folder / "stage.json").write_text(json.dumps({**unit.record(), "bytes": size}))


def test_time_is_estimated_from_what_was_measured(tmp_path: Path) -> None:
    units = small_units(tmp_path, seeds=[1, 2])
    tuned = [unit for unit in units if unit.about.get("method") == "tmt"]
    end(tuned[0], seconds=50)
    estimate = Estimate(tuned[:1], {"iteration": 100.0, "evaluation": 7.0})
    assert estimate.seconds(tuned[1]) == 50
    by_kind = {unit.kind: unit for unit in units}
    assert estimate.seconds(by_kind["source"]) == 2 * 100 + 7
    assert estimate.seconds(by_kind["evaluation"]) == 7
    assert Estimate([], {}).seconds(by_kind["source"]) is None


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    units = small_units(tmp_path, scores={})
    assert Progress(units, tmp_path, {}).summary() == "0 of 6 done, about ? left"
    guess = {"evaluation": 90}  # of the evaluation and the scores, not of the others
    assert Progress(units, tmp_path, guess).summary() == "0 of 6 done, about 3 min 00 s and what is unknown (?) left"
    assert not (tmp_path / "out").exists()  # a look touches nothing


@pytest.mark.slow
def test_the_disk_is_told_from_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    units = small_units(tmp_path, methods=["full"], seeds=[1, 2, 3])
    assert [unit.kind for unit in units] == ["source", "evaluation", "finetune"] * 3

    def disk_of(free: float) -> None:
        monkeypatch.setattr(progress, "shutil", SimpleNamespace(disk_usage=lambda path: usage(path, free)))

    def usage(path: Path, free: float) -> SimpleNamespace:
        assert path.exists()
        return SimpleNamespace(free=free)

    def status() -> Progress:
        return Progress(units, tmp_path / "out", {"iteration": 1, "evaluation": 1})

    disk_of(1e9)
    assert "disk" not in status().text()  # nothing was measured, nothing is said
    end(units[0], size=200e6)
    end(units[1], size=0.5e6)
    assert "401.0 MB and what is unknown (?) of disk to fill, 1.0 GB free" in status().summary()
    end(units[2], size=600e6)
    assert "left, 1.6 GB of disk to fill, 1.0 GB free" in status().summary()
    told = status()
    with caplog.at_level("INFO"):
        told.log("start")
        told.log("a unit is done")
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warnings == [
        f"{tmp_path / 'out'} is on a disk with 1.0 GB free, the missing units will take 1.6 GB: free some, or choose "
        "another --output"
    ]
    assert warnings[0] in told.text()
    disk_of(1.7e9)  # control: it fits
    assert status().warning() == "" and "choose another" not in status().text()
    for unit in units[3:]:
        end(unit, size=1)
    assert status().summary() == "9 of 9 done"


def test_free_space_is_that_of_the_folder_to_be(tmp_path: Path) -> None:
    units = small_units(tmp_path)
    assert Progress(units, tmp_path / "a" / "b", {})._free() == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert not (tmp_path / "a").exists()
