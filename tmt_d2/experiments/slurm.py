"""Each unit as a Slurm job, by submitit."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tmt_d2.errors import UserError
from tmt_d2.experiments.progress import Progress
from tmt_d2.experiments.running import RunUnit, check_units, run_recorded
from tmt_d2.experiments.units import Unit


def run_on_slurm(
    units: Sequence[Unit], output: Path, run: RunUnit, guess: Mapping[str, float], parameters: Mapping[str, Any]
) -> Progress:
    """As ``run_all``, each unit a job of its own: what needs nothing that is missing first, then what needs that.

    Args:
        parameters: of submitit's ``update_parameters``, e.g. slurm_partition, gpus_per_node, timeout_min.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--slurm needs submitit: pip install submitit") from error
    check_units(units)
    executor = submitit.AutoExecutor(folder=str(output / "jobs"))
    executor.update_parameters(**parameters)
    progress = Progress(units, output, guess)
    progress.log(f"{len(units)} units in {output}")
    for wave in waves(units):
        missing = [unit for unit in wave if progress.state[unit.name] == "waiting"]
        for unit in missing:
            if any(progress.state[need] != "done" for need in unit.needs):
                progress.fail(unit, "what it needs failed")
        missing = [unit for unit in missing if progress.state[unit.name] == "waiting"]
        if not missing:
            continue
        jobs = executor.map_array(run_recorded, missing, [run] * len(missing))
        for unit, job in zip(missing, jobs):
            try:
                if job.result():
                    progress.set(unit, "done")
                else:
                    progress.fail(unit, "another process is at work on it")
            except Exception as error:
                progress.fail(unit, str(error).strip().splitlines()[-1])
            progress.log(f"{unit.name}: {progress.state[unit.name]}")
    return progress


def waves(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units by the longest chain of needs before them: nothing in a wave needs anything of the same wave."""
    depth: dict[str, int] = {}
    for unit in units:  # what is needed stands before what needs it
        depth[unit.name] = 1 + max((depth[need] for need in unit.needs), default=-1)
    return [[unit for unit in units if depth[unit.name] == level] for level in range(max(depth.values()) + 1)]


def parse_parameters(items: Sequence[str]) -> dict[str, Any]:
    """["a=1", "b=text"] -> {"a": 1, "b": "text"}."""
    parameters = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"--slurm {item}: write KEY=VALUE, e.g. slurm_partition=gpu")
        try:
            parameters[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[key] = text
    return parameters
