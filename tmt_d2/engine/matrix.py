"""Many pairs at once: sources x targets x methods x seeds x label fractions, and sweeps, from one YAML file.

The plan is a list of units. A unit is one stage in one folder; ``stage.json`` in it, written last, says that it is
done, so a run may be killed at any moment and the same command goes on. Source models and estimators are units that
others share. Training is ``run_stage``; there is no scheduler here, only an order.
"""

from __future__ import annotations

import ast
import fcntl
import fnmatch
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from tabulate import tabulate

from ..config import setup_cfg
from ..data import register_custom
from ..files import atomic_write, write_json
from .pair import STAGE_RECORD, check_methods, estimator_cfg, is_done, needs_estimator, run_missing, split_name
from .scoring import score_checkpoint
from .signals import STOPPED
from .stages import RESULTS, check_stage, run_stage

logger = logging.getLogger(__name__)

SCORES_FILE = "scores.json"
KINDS = ("source", "evaluation", "scores", "estimator", "finetune")
POLL = 5.0  # seconds between two looks at what other processes do
RunUnit = Callable[["Unit"], Any]


@dataclass(frozen=True)
class Sweep:
    """``key`` takes each of ``values`` for each of ``methods``."""

    name: str
    key: str
    values: tuple[Any, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a matrix file says, checked.

    pairs: (source, target) in the order of the file. options: KEY VALUE overrides for all units, and by kind for
    units of that kind. scores: arguments of ``score_checkpoint``, or None: no scores. guess: seconds of an
    "iteration" and of an "evaluation" where none was measured. render: "train" and "val" images of each data set that
    the command draws before the first unit; None: the data is there.
    """

    configs: Path
    pairs: tuple[tuple[str, str], ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    label_fractions: tuple[float, ...]
    sweeps: tuple[Sweep, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    kind_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Mapping[str, int] | None = None
    guess: Mapping[str, float] = field(default_factory=dict)
    render: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Unit:
    """One stage of one cell.

    name: its folder below the output. kind: of ``KINDS``. needs: names of units whose checkpoints it reads. about:
    what it is for, with "kind", "source", "target", "seed", ...: the report reads it from ``stage.json``.
    """

    name: str
    kind: str
    cfg: CfgNode
    needs: tuple[str, ...]
    about: Mapping[str, Any]
    scores: Mapping[str, int] | None = None

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    def is_done(self) -> bool:
        return is_done(self.name, self.cfg, self.record())

    def record(self) -> dict[str, Any]:
        return {"unit": dict(self.about)} | ({"scores": dict(self.scores)} if self.scores else {})


# --- the file


def read_plan(path: str | Path) -> Plan:
    """Read a matrix file; see ``configs/matrix``.

    Raises:
        FileNotFoundError, ValueError: one line with the file and the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"matrix file {path} does not exist")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    try:
        return _plan_of(content, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _plan_of(content: Any, folder: Path) -> Plan:
    if not isinstance(content, dict):
        raise ValueError(f"a matrix file is a mapping of keys, this one holds {type(content).__name__}")
    known = {"configs", "sources", "targets", "pairs", "methods", "seeds", "label_fractions", "sweeps", "options"}
    known |= {"kind_options", "scores", "guess", "render"}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}: use {', '.join(sorted(known))}")
    configs = folder / _typed(content, "configs", str)
    if not configs.is_dir():
        raise ValueError(f"configs: {configs} is not a folder")
    if "pairs" in content:
        if "sources" in content or "targets" in content:
            raise ValueError("pairs: give either pairs, or sources and targets")
        written = [str(pair).split("-") for pair in _list(content, "pairs")]
        if any(len(parts) != 2 for parts in written):
            raise ValueError("pairs: each is written source-target, e.g. cityscapes-bdd100k")
        pairs = [(source, target) for source, target in written]
    else:
        sources = _list(content, "sources")
        targets = _list(content, "targets", sources)
        pairs = [(source, target) for source in sources for target in targets if source != target]
    methods = tuple(_list(content, "methods"))
    check_methods(configs, methods)
    sweeps = []
    for name, item in content.get("sweeps", {}).items():
        item_methods = tuple(item.get("methods", methods))
        check_methods(configs, item_methods)
        sweeps.append(Sweep(name, item["key"], tuple(item["values"]), item_methods))
    kind_options = content.get("kind_options", {})
    for kind in kind_options:
        if kind not in KINDS:
            raise ValueError(f"kind_options: {kind!r} is not one of {', '.join(KINDS)}")
    fractions = tuple(float(value) for value in _list(content, "label_fractions", [1.0]))
    return Plan(
        configs=configs,
        pairs=tuple(dict.fromkeys(pairs)),
        methods=methods,
        seeds=tuple(int(seed) for seed in _list(content, "seeds", [1])),
        label_fractions=fractions,
        sweeps=tuple(sweeps),
        options=content.get("options", {}),
        kind_options=kind_options,
        scores=content.get("scores"),
        guess=content.get("guess", {}),
        render=_render(content.get("render")),
    )


def _render(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    unknown = sorted(set(values) - {"train", "val", "size", "seed"})
    if unknown:
        raise ValueError(f"render: unknown key {unknown[0]!r}: use train, val, size, seed")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _typed(content: Mapping[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {value!r}: it must be a {kind.__name__}")
    return value


def _list(content: Mapping[str, Any], key: str, default: Sequence[Any] | None = None) -> list[Any]:
    value = content.get(key, default)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{key} is {value!r}: it must be a list with at least one entry")
    return list(value)


# --- the units


def units_of(plan: Plan, output: Path, opts: Sequence[str] = ()) -> list[Unit]:
    """All units in the order in which they are run: a pair is complete before the next one begins, seed by seed.

    Args:
        opts: KEY VALUE ... overrides behind those of the file.
    """
    units: dict[str, Unit] = {}
    for seed in plan.seeds:
        for source, target in plan.pairs:
            for unit in _PairUnits(plan, output, opts, source, target, seed).units():
                units.setdefault(unit.name, unit)
    return list(units.values())


class _PairUnits:
    def __init__(self, plan: Plan, output: Path, opts: Sequence[str], source: str, target: str, seed: int):
        self.plan, self.output, self.opts = plan, output, opts
        self.source, self.target, self.seed = source, target, seed
        self.pair = f"{source}-{target}"
        self.source_name = f"source/{source}/seed{seed}"
        self.weights = f"{output / self.source_name}/model_final.pth"

    def units(self) -> Iterator[Unit]:
        about = {"source": self.source, "target": self.target, "seed": self.seed}
        cfg = self.cfg("source", self.source_name, "source", test=self.source)
        yield self.unit(self.source_name, "source", cfg, (), {"source": self.source, "seed": self.seed})
        name = f"evaluation/{self.pair}/seed{self.seed}"
        cfg = self.cfg("source", name, "evaluation", self.weights)
        yield self.unit(name, "evaluation", cfg, (self.source_name,), about)
        if self.plan.scores is not None:
            name = f"scores/{self.pair}/seed{self.seed}"
            cfg = self.cfg("source", name, "scores", self.weights)
            yield self.unit(name, "scores", cfg, (self.source_name,), about, self.plan.scores)
        for fraction in self.plan.label_fractions:
            for method in self.plan.methods:
                yield from self.cell(method, fraction)
            for sweep in self.plan.sweeps:
                for method in sweep.methods:
                    own = self.own_value(method, sweep.key) if method in self.plan.methods else None
                    for value in sweep.values:
                        if value != own:  # that one is a cell of the plan anyway
                            yield from self.cell(method, fraction, sweep, value)

    def own_value(self, method: str, key: str) -> Any:
        node: Any = self.cfg(method, "", "finetune")
        for part in key.split("."):
            node = node[part]
        return node

    def cell(self, method: str, fraction: float, sweep: Sweep | None = None, value: Any = None) -> Iterator[Unit]:
        swept = [] if sweep is None else [sweep.key, str(value)]
        part = method if sweep is None else f"{method}/{sweep.name}-{_plain(value)}"
        name = f"finetune/{self.pair}/{part}/labels{_plain(fraction)}/seed{self.seed}"
        extra = ["TRANSFER.LABEL_FRACTION", fraction, *swept]
        cfg = self.cfg(method, name, "finetune", self.weights, extra)
        needs = self.source_name
        if needs_estimator(cfg):
            shared = self.cfg("estimator", f"estimator/{self.pair}/seed{self.seed}", "estimator", self.weights)
            estimator = estimator_cfg(shared, cfg)
            needs = str(Path(estimator.OUTPUT_DIR).relative_to(self.output))
            variant = Path(needs).name.removeprefix(f"seed{self.seed}").lstrip("-")
            about = {"source": self.source, "target": self.target, "seed": self.seed, "variant": variant}
            yield self.unit(needs, "estimator", estimator, (self.source_name,), about)
            cfg = self.cfg(method, name, "finetune", f"{estimator.OUTPUT_DIR}/model_final.pth", extra)
        about = {"source": self.source, "target": self.target, "seed": self.seed, "method": method}
        about |= {"label_fraction": fraction}
        if sweep is not None:
            about |= {"sweep": sweep.name, "key": sweep.key, "value": value}
        yield self.unit(name, "finetune", cfg, (needs,), about)

    def unit(
        self,
        name: str,
        kind: str,
        cfg: CfgNode,
        needs: tuple[str, ...],
        about: Mapping[str, Any],
        scores: Mapping[str, int] | None = None,
    ) -> Unit:
        return Unit(name, kind, cfg, needs, {"kind": kind, **about}, scores)

    def cfg(
        self, file: str, name: str, kind: str, weights: str = "", extra: Sequence[Any] = (), test: str = ""
    ) -> CfgNode:
        train = self.source if kind == "source" else self.target
        values: list[Any] = ["DATASETS.TRAIN", (split_name(train, "train"),)]
        values += ["DATASETS.TEST", (split_name(test or self.target, "val"),)]
        if kind != "source":
            values += ["DATASETS.SOURCE_TRAIN", (split_name(self.source, "train"),)]
            values += ["DATASETS.SOURCE_TEST", (split_name(self.source, "val"),)]
        if weights:
            values += ["MODEL.WEIGHTS", weights]
        for options in (self.plan.options, self.plan.kind_options.get(kind, {})):
            values += [item for key, value in options.items() for item in (key, value)]
        values += [*extra, "SEED", self.seed, *self.opts, "OUTPUT_DIR", str(self.output / name)]
        return setup_cfg(str(self.plan.configs / f"{file}.yaml"), values)


def _plain(value: Any) -> str:
    """A value as a part of a file name."""
    if isinstance(value, float):
        return f"{value:g}"
    return "_".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def select(units: Sequence[Unit], pattern: str | None) -> list[Unit]:
    """Units whose name holds ``pattern`` (with * and ?), and all that they need.

    Raises:
        ValueError: there are none.
    """
    if pattern is None:
        return list(units)
    by_name = {unit.name: unit for unit in units}
    wanted = [unit.name for unit in units if fnmatch.fnmatch(unit.name, f"*{pattern}*")]
    if not wanted:
        raise ValueError(f"--only {pattern}: no unit is called so; --dry-run lists their names")
    chosen = set()
    while wanted:
        name = wanted.pop()
        chosen.add(name)
        wanted += [need for need in by_name[name].needs if need not in chosen]
    return [unit for unit in units if unit.name in chosen]


# --- running


def run_unit(unit: Unit) -> None:
    """What a process of the launcher does for one unit; goes on from the unit's last checkpoint."""
    if unit.kind == "scores":
        data = unit.cfg.DATASETS
        values = score_checkpoint(unit.cfg, data.TRAIN, data.SOURCE_TRAIN, **(unit.scores or {}), seed=unit.cfg.SEED)
        unit.folder.mkdir(parents=True, exist_ok=True)
        write_json(unit.folder / SCORES_FILE, values)
        return
    run_stage(unit.cfg, resume=unit.kind != "evaluation", eval_only=unit.kind == "evaluation")


def run_recorded(unit: Unit, run: RunUnit) -> bool:
    """Run a unit unless it is done, and record that it is; False, and nothing, while another process runs it."""
    with claimed(unit.folder / ".lock") as mine:
        if mine:
            run_missing(unit.name, unit.cfg, lambda _: run(unit), unit.record())
        return mine


@contextmanager
def claimed(lock: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file for the block, or yield False if another process has it; the system ends a lock with its process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


class Progress:
    """Which units are done, running (here or elsewhere), failed or waiting; ``progress.txt`` has one line for each."""

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
            file.write(f"{self.table()}\n\n{self.summary()}\n")

    def fail(self, unit: Unit, reason: str) -> None:
        self.failures[unit.name] = reason
        self.set(unit, "failed")

    def _estimate(self) -> Estimate:
        return Estimate([unit for unit in self.units if self.state[unit.name] == "done"], self.guess)

    def table(self) -> str:
        estimate = self._estimate()
        rows = []
        for unit in self.units:
            state = self.state[unit.name]
            seconds = recorded(unit)["seconds"] if state == "done" else estimate.seconds(unit)
            rows.append((unit.name, state, _clock(seconds), headline(unit) if state == "done" else ""))
        return tabulate(rows, headers=("unit", "state", "time", "result"), colalign=("left", "left", "right", "left"))

    def left(self) -> float | None:
        """Seconds of the units that are not done, or None where nothing is known about them."""
        estimate = self._estimate()
        times = [estimate.seconds(unit) for unit in self.units if self.state[unit.name] not in ("done", "failed")]
        known = [seconds for seconds in times if seconds is not None]
        return sum(known) if len(known) == len(times) else None

    def summary(self) -> str:
        states = list(self.state.values())
        text = f"{states.count('done')} of {len(states)} done"
        if states.count("failed"):
            text += f", {states.count('failed')} failed"
        waiting = len(states) - states.count("done") - states.count("failed")
        return f"{text}, about {_clock(self.left())} left" if waiting else text


def run_all(units: Sequence[Unit], output: Path, run: RunUnit, guess: Mapping[str, float]) -> Progress:
    """Run the units that are missing, one after the other; one that fails only stops those that need it.

    Several processes may do this at once with the same output: each unit is run by the one that comes to it first.

    Returns:
        what became of each; its ``failures`` names the reasons.
    """
    progress = Progress(units, output, guess)
    check_units(progress.waiting())
    while waiting := progress.waiting():
        began = [_run_if_ready(unit, progress, run) for unit in waiting]
        if not any(began):
            time.sleep(POLL)
            progress.look()
    return progress


def _run_if_ready(unit: Unit, progress: Progress, run: RunUnit) -> bool:
    """Whether anything became of the unit; nothing does while other processes are at it or at what it needs."""
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
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == STOPPED:
            raise
        logger.exception("%s failed", unit.name)
        progress.fail(unit, " ".join(str(error).split()) or type(error).__name__)
        return True
    progress.set(unit, "done" if mine else "elsewhere")
    if mine:
        took = _clock(time.perf_counter() - start)
        logger.info("%s: %s in %s; %s", unit.name, headline(unit), took, progress.summary())
    return mine


def check_units(units: Sequence[Unit]) -> None:
    """Raise what any of them would raise about its settings or data, before hours are spent on the others."""
    seen = set()
    for unit in units:
        cfg = unit.cfg
        what = unit.kind, cfg.TRANSFER.METHOD, cfg.DATASETS.dump()
        if what not in seen:
            for path in cfg.DATASETS.CUSTOM:
                register_custom(path)
            check_stage(cfg, eval_only=unit.kind == "evaluation")
        seen.add(what)


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
        raise ValueError("--slurm needs submitit: pip install submitit") from error
    check_units(units)
    executor = submitit.AutoExecutor(folder=str(output / "jobs"))
    executor.update_parameters(**parameters)
    progress = Progress(units, output, guess)
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
            logger.info("%s: %s; %s", unit.name, progress.state[unit.name], progress.summary())
    return progress


def waves(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units by the longest chain of needs before them: nothing in a wave needs anything of the same wave."""
    depth: dict[str, int] = {}
    for unit in units:  # what is needed stands before what needs it
        depth[unit.name] = 1 + max((depth[need] for need in unit.needs), default=-1)
    return [[unit for unit in units if depth[unit.name] == level] for level in range(max(depth.values()) + 1)]


# --- what is known about units


def recorded(unit: Unit) -> dict[str, Any]:
    return json.loads((unit.folder / STAGE_RECORD).read_text())


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


class Estimate:
    """Seconds that units will take: from units of the same kind and method that are done, else from the file."""

    def __init__(self, done: Sequence[Unit], guess: Mapping[str, float]):
        self.guess = guess
        self.measured: dict[Any, list[float]] = {}
        for unit in done:
            self.measured.setdefault(self._sort(unit), []).append(recorded(unit)["seconds"] / self._size(unit))

    @staticmethod
    def _sort(unit: Unit) -> tuple[str, str]:
        return unit.kind, unit.about.get("method", "")

    @staticmethod
    def _size(unit: Unit) -> int:
        if unit.kind in ("evaluation", "scores"):
            return 1
        aligned = unit.cfg.TRANSFER.ALIGNMENT.ITERATIONS if unit.cfg.TRANSFER.METHOD in ("leep", "otce") else 0
        return unit.cfg.SOLVER.MAX_ITER + (aligned if unit.kind == "finetune" else 0)

    def seconds(self, unit: Unit) -> float | None:
        measured = self.measured.get(self._sort(unit))
        if measured:
            return statistics.median(measured) * self._size(unit)
        evaluation = self.guess.get("evaluation")
        if self._size(unit) == 1:
            return evaluation
        iteration = self.guess.get("iteration")
        return None if iteration is None else iteration * self._size(unit) + (evaluation or 0)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def dry_run_table(units: Sequence[Unit], guess: Mapping[str, float]) -> str:
    """What would run and how long it would take; touches nothing."""
    done = [unit for unit in units if unit.is_done()]
    names = {unit.name for unit in done}
    estimate = Estimate(done, guess)
    rows, total, unknown = [], 0.0, False
    for unit in units:
        if unit.name in names:
            rows.append((unit.name, "done", _clock(recorded(unit)["seconds"])))
            continue
        seconds = estimate.seconds(unit)
        total, unknown = total + (seconds or 0), unknown or seconds is None
        rows.append((unit.name, "to do", _clock(seconds)))
    table = tabulate(rows, headers=("unit", "state", "time"), colalign=("left", "left", "right"))
    more = " and what is unknown (?)" if unknown else ""
    left = len(units) - len(done)
    return f"{table}\n\n{left} of {len(units)} units to do, about {_clock(total)}{more} one after the other"


def parse_parameters(items: Sequence[str]) -> dict[str, Any]:
    """["a=1", "b=text"] -> {"a": 1, "b": "text"}."""
    parameters = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator:
            raise ValueError(f"--slurm {item}: write KEY=VALUE, e.g. slurm_partition=gpu")
        try:
            parameters[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[key] = text
    return parameters
