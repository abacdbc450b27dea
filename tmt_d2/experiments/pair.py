"""A single pair: a plan with one cell, run as a matrix is, and a table of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from tabulate import tabulate

from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.experiments.plan import Plan, check_methods
from tmt_d2.experiments.running import RunUnit, run_all, run_unit
from tmt_d2.experiments.units import Unit, units_of
from tmt_d2.utils.files import write_json


class PairResults(TypedDict):
    """Content of ``results.json``. Metrics are in percent, by name.

    methods: metrics by method or variant. proxy_a_distance: by level; empty where no method uses the shared estimator.
    seconds: by unit.
    """

    source: str
    target: str
    source_on_source: Mapping[str, float]
    source_on_target: Mapping[str, float]
    methods: dict[str, Mapping[str, float]]
    proxy_a_distance: Sequence[float]
    seconds: dict[str, float]


def pair_units(
    model: Path,
    source: str,
    target: str,
    methods: Sequence[str],
    output: Path,
    opts: Sequence[str] = (),
    source_weights: Path | None = None,
) -> list[Unit]:
    """
    Args:
        model: a config file of ``configs/models``.
        methods: names of ``configs/methods``, or YAML files.
        source, target: data set names such as "cityscapes"; their splits are ``<name>_sem_seg_train`` and ``_val``.
        opts: KEY VALUE ... overrides for every unit.
        source_weights: checkpoint of the source model; None: it is trained.

    Raises:
        UserError: an argument cannot be used.
    """
    if source_weights and not source_weights.is_file():
        raise UserError("not a file", key="--source-weights", value=str(source_weights))
    if source_weights and "MODEL.WEIGHTS" in opts[::2]:
        raise UserError(
            "overridden, although --source-weights is given", key="MODEL.WEIGHTS", hint="remove one of them"
        )
    check_methods(model, methods)
    plan = Plan(model, ((source, target),), tuple(methods), source_weights=source_weights)
    return units_of(plan, output, opts)


def run_pair(units: Sequence[Unit], output: Path, run: RunUnit = run_unit) -> PairResults:
    """Run the units that are missing, and write the results of all to ``results.json``.

    Raises:
        the first error of a unit, once all units that do not need it have been run.
    """
    progress = run_all(units, output, run, {})
    if progress.first_error is not None:
        raise progress.first_error
    results = pair_results(units)
    write_json(output / "results.json", results)
    return results


def pair_results(units: Sequence[Unit]) -> PairResults:
    def metrics(unit: Unit) -> dict[str, float]:
        (values,) = unit.values().values()  # of the one split
        return {metric: values[metric] for metric in METRICS}

    # "source", "evaluation", "estimator", "estimator-square", "tmt", ...
    by_label = {
        "-".join(filter(None, [unit.about.get("method", unit.kind), unit.about.get("variant")])): unit for unit in units
    }
    evaluation, estimator = by_label["evaluation"], by_label.get("estimator")
    return {
        "source": evaluation.about["source"],
        "target": evaluation.about["target"],
        "source_on_source": metrics(by_label["source"]),
        "source_on_target": metrics(evaluation),
        "methods": {unit.about["method"]: metrics(unit) for unit in units if unit.kind == "finetune"},
        "proxy_a_distance": estimator.values()["proxy_a_distance"] if estimator else [],
        "seconds": {label: unit.record()["seconds"] for label, unit in by_label.items()},
    }


def results_table(results: PairResults) -> str:
    """Return a table of the metrics in percent, the proxy A-distances, and the time of each unit."""
    source, target = results["source"], results["target"]
    rows = [
        ("source model", source, *results["source_on_source"].values()),
        ("source model", target, *results["source_on_target"].values()),
        *((f"fine-tuned: {name}", target, *values.values()) for name, values in results["methods"].items()),
    ]
    table = tabulate(rows, headers=("model", "evaluated on", *METRICS), floatfmt=".1f")
    distances = ", ".join(f"{value:.2f}" for value in results["proxy_a_distance"])
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in results["seconds"].items())
    pad = f"\nproxy A-distance at strides 32, 16, 8: {distances}" if distances else ""
    return f"{table}\n{pad}\ntime: {times}"
