"""Run the units that are missing, one after the other; several processes may share the work."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tmt_d2.adaptation.checks import check_task
from tmt_d2.config import replace_keys
from tmt_d2.data import register_data
from tmt_d2.data.datasets.registration import check_registered
from tmt_d2.engine.hooks.evaluation_images import EvaluationImages
from tmt_d2.engine.launch import launch
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import USER_ERRORS, UserError, one_line
from tmt_d2.experiments.progress import Progress, clock, headline
from tmt_d2.experiments.results import SCORES_FILE
from tmt_d2.experiments.scoring import score_checkpoint
from tmt_d2.experiments.units import Unit
from tmt_d2.utils.files import write_json
from tmt_d2.utils.lock import file_lock
from tmt_d2.utils.signals import STOPPED

logger = logging.getLogger(__name__)

POLL = 5.0  # seconds between checks of units that other processes run
RunUnit = Callable[[Unit], Any]


def run_unit(unit: Unit) -> None:
    """Run one unit in a process of the launcher; it resumes from the unit's last checkpoint."""
    if unit.kind == "scores":
        data = unit.cfg.DATASETS
        values = score_checkpoint(unit.cfg, data.TRAIN, data.SOURCE_TRAIN, **(unit.scores or {}), seed=unit.cfg.SEED)
        unit.folder.mkdir(parents=True, exist_ok=True)
        write_json(unit.folder / SCORES_FILE, values)
        return
    hooks = [EvaluationImages(unit.cfg)]
    run_stage(unit.cfg, resume=not unit.trains_nothing, eval_only=unit.trains_nothing, hooks=hooks)


def launch_unit(unit: Unit, num_processes: int) -> None:
    """``run_unit`` in ``num_processes`` processes of this machine; scores are taken by one."""
    processes = 1 if unit.kind == "scores" else num_processes
    launch(run_unit, processes, args=(unit,), device=unit.cfg.MODEL.DEVICE)


def run_recorded(unit: Unit, run: RunUnit) -> bool:
    """Run a unit unless it is done, and record that it is.

    Returns:
        False if another process is running it, and nothing was done.
    """
    with file_lock(unit.folder / ".lock") as holder:
        if not holder and not unit.is_done():
            logger.info("%s: running, in %s", unit.name, unit.folder)
            start = time.perf_counter()
            unit.write_beginning()
            run(unit)
            unit.write_record(time.perf_counter() - start)
        return not holder


def run_all(units: Sequence[Unit], output: Path, run: RunUnit, guess: Mapping[str, float]) -> Progress:
    """Run the units that are missing, one after the other; a failure only stops the units that need the failed one.

    Several processes may do this at once with the same output: each unit is run by the one that comes to it first.
    """
    progress = Progress(units, output, guess)
    check_units(progress.waiting())
    progress.log(f"{len(units)} units in {output}")
    while waiting := progress.waiting():
        began = [_run_if_ready(unit, progress, run) for unit in waiting]
        if not any(began):
            time.sleep(POLL)
            progress.update()
    return progress


def _run_if_ready(unit: Unit, progress: Progress, run: RunUnit) -> bool:
    """
    Returns:
        False if the unit must wait: another process is running it, or a unit that it needs.
    """
    if progress.state[unit.name] in ("done", "failed"):
        return True
    states = {need: progress.state[need] for need in unit.needs}
    broken = [need for need, state in states.items() if state == "failed"]
    if broken:
        progress.fail(unit, f"needs {broken[0]}")
        return True
    if set(states.values()) - {"done"}:
        return False
    start = time.perf_counter()
    try:
        progress.set(unit, "running")
        mine = run_recorded(unit, run)
    except KeyboardInterrupt:
        progress.set(unit, "waiting")
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == STOPPED:
            progress.set(unit, "waiting")
            logger.warning("%s: stopped; the same command resumes it", unit.name)
            raise
        ended = isinstance(error, SystemExit)  # its processes have printed the reason
        reason = f"its processes ended with status {error.code}" if ended else one_line(error)
        logger.error("%s failed: %s", unit.name, reason, exc_info=not (ended or isinstance(error, USER_ERRORS)))
        progress.fail(unit, reason, error)
        return True
    progress.set(unit, "done" if mine else "elsewhere")
    if mine:
        progress.log(f"{unit.name}: {headline(unit)} in {clock(time.perf_counter() - start)}")
    return mine


def check_names(units: Sequence[Unit]) -> None:
    """
    Raises:
        UserError: a data set is not registered; only the files of custom sets are read.
    """
    for unit in units:
        data = unit.cfg.DATASETS
        register_data(unit.cfg)
        source, target = unit.about["source"], unit.about.get("target")
        pair = f"pair {source}-{target}" if target else f"source {source}"
        if source == target and unit.kind == "evaluation":
            logger.warning("%s: source and target are one domain, T is meaningless", pair)
        for name in dict.fromkeys([*data.TRAIN, *data.TEST, *data.SOURCE_TRAIN, *data.SOURCE_TEST]):
            check_registered(name, pair)


def check_units(units: Sequence[Unit]) -> None:
    """Raise the errors of all units about settings and data, before hours are spent on some of them."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("units start their own processes", key="RANK", value=os.environ["RANK"], hint="use --num-gpus")
    seen = set()
    for unit in units:
        settings = unit.kind, json.dumps(replace_keys(unit.cfg, {"OUTPUT_DIR": "", "SEED": 0, "MODEL.WEIGHTS": ""}))
        if settings not in seen:
            register_data(unit.cfg)
            check_task(unit.cfg, eval_only=unit.trains_nothing and unit.kind != "scores")
        seen.add(settings)
