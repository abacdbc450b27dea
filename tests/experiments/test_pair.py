"""A single pair: a plan with one cell, its results, and the command's exit status."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.errors import refuses
from tests.helpers.small_runs import metrics_of, unit_options
from tmt_d2.cli import train_pair
from tmt_d2.engine.step import TrainingStep
from tmt_d2.errors import UserError, one_line_errors
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.experiments.pair import PairResults, pair_units, results_table, run_pair
from tmt_d2.experiments.units import Unit
from tmt_d2.projects.report.document import write_report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]

PAIR = ("cityscapes", "bdd100k")
METHODS = ("tmt-no-tma", "full", "tmt-square")


def units_in(
    output: Path, *opts: str, methods: Sequence[str] = METHODS, source_weights: Path | None = None
) -> list[Unit]:
    return pair_units(TINY_CONFIG, *PAIR, methods, output, [*unit_options(SOLVER__MAX_ITER=1), *opts], source_weights)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, data_root) -> tuple[Path, PairResults]:
    output = tmp_path_factory.mktemp("pair")
    return output, run_pair(units_in(output), output)


def test_results_and_folders_of_a_pair(pair) -> None:
    output, results = pair
    assert [path.parent.relative_to(output).as_posix() for path in sorted(output.rglob("stage.json"))] == [
        "estimator/cityscapes-bdd100k/seed1",
        "estimator/cityscapes-bdd100k/seed1-square",
        "evaluation/cityscapes-bdd100k/seed1",
        "finetune/cityscapes-bdd100k/full/labels1/seed1",
        "finetune/cityscapes-bdd100k/tmt-no-tma/labels1/seed1",
        "finetune/cityscapes-bdd100k/tmt-square/labels1/seed1",
        "source/cityscapes/seed1",
    ]
    assert json.loads((output / "results.json").read_text()) == results
    for values in (results["source_on_source"], results["source_on_target"], *results["methods"].values()):
        assert tuple(values) == METRICS
        assert all(0 <= value <= 100 for value in values.values())
    assert results["source_on_source"] != results["source_on_target"]
    assert results["methods"]["tmt-no-tma"] == results["methods"]["full"]  # the same training, by construction
    assert len(results["proxy_a_distance"]) == 3
    assert set(results["seconds"]) == {"source", "evaluation", "estimator", "estimator-square", *METHODS}
    assert f"{results['methods']['full']['mIoU']:.1f}" in results_table(results)
    assert "tmt-square" in write_report(output).read_text()


def test_units_that_are_done_are_not_run_again(pair) -> None:
    output, results = pair
    assert run_pair(units_in(output), output, lambda unit: pytest.fail(f"{unit.name} ran again")) == results
    with pytest.raises(UserError, match="source/cityscapes/seed1"):  # other settings
        run_pair(units_in(output, "SOLVER.BASE_LR", "0.5"), output)


def test_a_source_model_that_exists_is_evaluated_not_trained(pair, tmp_path: Path) -> None:
    given, output = tmp_path / "mine.pth", tmp_path / "out"
    shutil.copy(pair[0] / "source" / "cityscapes" / "seed1" / "model_final.pth", given)
    units = units_in(output, methods=["full"], source_weights=given)
    results = run_pair(units, output)
    for key in ("source_on_source", "source_on_target"):
        assert results[key] == pair[1][key]
    assert results["methods"]["full"] == pair[1]["methods"]["full"]
    assert [path.parent.parent.name for path in output.rglob("*.pth")] == ["labels1"]
    moved = tmp_path / "moved" / given.name
    moved.parent.mkdir()
    given.rename(moved)
    assert all(unit.is_done() for unit in units_in(output, methods=["full"], source_weights=moved))
    torch.save({**torch.load(moved, weights_only=True), "other": torch.zeros(1)}, given)
    for other in (given, None):
        with pytest.raises(UserError, match="source/cityscapes/seed1"):
            run_pair(units_in(output, methods=["full"], source_weights=other), output)


def test_source_weights_that_cannot_be_used(tmp_path: Path) -> None:
    with refuses("--source-weights"):
        units_in(tmp_path, source_weights=tmp_path / "nowhere.pth")
    (tmp_path / "given.pth").touch()
    with refuses("MODEL.WEIGHTS"):
        units_in(tmp_path, "MODEL.WEIGHTS", "other.pth", source_weights=tmp_path / "given.pth")


def command(output: Path, monkeypatch: pytest.MonkeyPatch, *opts: str, methods: str = "full") -> int | str | None:
    """Run the command and return its exit status."""
    arguments = ["--model", str(TINY_CONFIG), "--source", PAIR[0], "--target", PAIR[1], "--methods", methods]
    overrides = [*unit_options(SOLVER__MAX_ITER=2), *opts]
    monkeypatch.setattr("sys.argv", ["train_pair.py", *arguments, "--output", str(output), "--", *overrides])
    with pytest.raises(SystemExit) as exit_info, one_line_errors():
        train_pair.main()
        raise SystemExit(0)
    return exit_info.value.code


def test_a_signal_stops_the_command_and_the_same_command_resumes(tmp_path, monkeypatch, capsys) -> None:
    backward = TrainingStep.backward

    def signalled(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return backward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "backward", signalled)
        assert command(tmp_path, patch) == 75
    assert "--resume" not in "".join(capsys.readouterr())  # an option that this command does not have
    source = tmp_path / "source" / "cityscapes" / "seed1"
    assert (source / "model_0000000.pth").is_file() and not (source / "stage.json").exists()
    assert command(tmp_path, monkeypatch) == 0
    losses = [line["iteration"] for line in metrics_of(source)]
    assert losses == sorted(set(losses))  # no step was made twice
    assert "fine-tuned: full" in capsys.readouterr().out


@pytest.mark.parametrize(("methods", "opts"), [("magic", ()), ("full", ("MODEL.WEIGHTS", "nowhere.pth"))])
def test_errors_of_the_user(tmp_path, monkeypatch, capsys, methods: str, opts: tuple[str, ...]) -> None:
    assert command(tmp_path, monkeypatch, *opts, methods=methods) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert (opts or (methods,))[-1] in line and "Traceback" not in printed.out
