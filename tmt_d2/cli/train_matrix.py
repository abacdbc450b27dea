"""Run a whole matrix of transfers: sources x targets x methods and variants x seeds x label fractions, and sweeps.

    python tools/train_matrix.py --config configs/matrix/tiny-3.yaml --output output/tiny-3 --dry-run
    python tools/train_matrix.py --config configs/matrix/tiny-3.yaml --output output/tiny-3
    python tools/report.py output/tiny-3

The same command again resumes: finished units are skipped, an interrupted one continues from its last checkpoint. The
same command in another terminal, with another CUDA_VISIBLE_DEVICES, on another machine with the same folder, or in each
job of a Slurm array shares the work: a unit is run by the process that comes to it first. OUTPUT/progress.txt has a
line for each unit. Each source model and each estimator is trained once. Exit status: 0 all done; 1 a unit failed; 2 a
one-line error.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tmt_d2.cli.common import add_overrides, check_file, parse, run
from tmt_d2.config.file import find_config
from tmt_d2.errors import UserError

if TYPE_CHECKING:
    from tmt_d2.experiments.plan import Plan


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", type=Path, required=True, help="matrix file, see configs/matrix")
    arguments.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    arguments.add_argument("--dry-run", action="store_true", help="only list the units, with an estimate of the time")
    arguments.add_argument(
        "--only", metavar="PATTERN", help="units whose names contain this (with * and ?), and the units they need"
    )
    arguments.add_argument(
        "--num-gpus", type=int, default=1, help="GPUs of this machine per unit (on a CPU: processes)"
    )
    add_overrides(arguments)
    return arguments


def render_data(plan: Plan, output: Path) -> None:
    """Render the plan's data sets into OUTPUT/data."""
    root = output.resolve() / "data"
    names = dict.fromkeys(name for pair in plan.pairs for name in pair)
    values = {key: "x".join(map(str, value)) if key == "size" else value for key, value in plan.render.items()}
    options = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "tmt_d2.projects.street_scenes.command", "--root", str(root), *options]
    package = Path(__file__).resolve().parents[2]  # imported from here, installed or not
    if subprocess.run([*command, "--data-sets", *names], cwd=package).returncode:
        raise UserError(f"the scenes of {', '.join(names)} could not be rendered in {root}", key="render")
    os.environ["DETECTRON2_DATASETS"] = str(root)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(parser(), arguments)
    check_file("--config", find_config(args.config))
    from tmt_d2.experiments.plan import read_plan
    from tmt_d2.experiments.progress import Progress
    from tmt_d2.experiments.running import check_names, launch_unit, run_all
    from tmt_d2.experiments.units import select, units_of
    from tmt_d2.utils.lock import file_lock
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    plan = read_plan(args.config)
    units = select(units_of(plan, args.output, args.opts), args.only)
    check_names(units)
    if args.dry_run:
        print(Progress(units, args.output, plan.guess).text())
        return 0
    launch = partial(launch_unit, num_processes=args.num_gpus)
    if plan.render:
        with file_lock(args.output / ".lock", wait=True):
            render_data(plan, args.output)
    progress = run_all(units, args.output, launch, plan.guess)
    print(progress.text())
    for name, reason in progress.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if progress.failures else 0


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
