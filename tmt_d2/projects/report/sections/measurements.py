"""What was measured before fine-tuning: by the domain discriminators, and by scores, with what came true of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tmt_d2.adaptation.drift import DRIFT
from tmt_d2.adaptation.methods import BASELINE
from tmt_d2.experiments.results import by_cell, classes_of
from tmt_d2.experiments.scoring import SCORES
from tmt_d2.experiments.statistics import correlation
from tmt_d2.projects.report.charts import Chart, HeatTable, Point, Series, colour_of
from tmt_d2.projects.report.sections import NOTHING, Cell, Row, Section, Table
from tmt_d2.projects.report.view import MIOU, View
from tmt_d2.utils.files import read_json

LEVELS = tuple(f"stride {stride}" for stride in (32, 16, 8))
# Key, caption, and the range of what it measures.
MEASURES = (
    ("proxy_a_distance", "proxy A-distance", (0.0, 2.0)),
    ("std_of_t_within_image", "standard deviation of T within an image", (0.0, 0.5)),
    ("rank_stability", "rank stability: Spearman's correlation of two discriminators", (0.0, 1.0)),
)
DRIFTS = (
    ("spearman_to_step_0", "after fine-tuning: Spearman's correlation of T with T before it", (0.0, 1.0)),
    ("spread", "after fine-tuning: standard deviation of T within an image", (0.0, 0.5)),
    ("error", "after fine-tuning: error of E on held-out pictures of both domains", (0.0, 0.5)),
)


def estimators(view: View) -> Section:
    """What each discriminator measured, and how far T had moved when fine-tuning ended, by level."""
    runs = [run for run in view.results.estimator if not run.about.get("variant")]
    pairs = [" → ".join(pair) for pair in view.pairs]
    parts = [
        (caption, _by_level(pairs, [(" → ".join(run.pair), run.values[key]) for run in runs], scale))
        for key, caption, scale in MEASURES
    ]
    # The classes in the order of their train ids; means of T are of those that occur.
    classes = classes_of([*view.results.fine_tuned, *view.results.evaluation])
    t_of_classes = [
        (name, [means.get(name) for means in run.values["mean_t_by_class"]]) for run in runs for name in classes
    ]
    parts.append(("mean T by class, over all pairs", _by_level(classes, t_of_classes)))
    drifts = [
        (method, read_json(file))
        for method in view.methods
        for run in view.runs(method)
        if (file := run.folder / f"{DRIFT}.json").is_file()
    ]
    parts += [
        (caption, _by_level(view.methods, [(method, drift[key]) for method, drift in drifts if key in drift], scale))
        for key, caption, scale in DRIFTS
    ]
    parts = [(caption, table) for caption, table in parts if table.values]
    return Section("estimators", "Transferability", {"parts": parts} if parts else {})


def _by_level(
    names: Sequence[str],
    measured: Iterable[tuple[str, Sequence[float | None]]],
    scale: tuple[float, float] = (0.0, 1.0),
) -> HeatTable:
    """Means of what was measured, (name, value of each level), in the order of names."""
    values: dict[tuple[str, str], list[float]] = {}
    for name, by_level in measured:
        for level, value in zip(LEVELS, by_level):
            if value is not None:
                values.setdefault((name, level), []).append(value)
    rows = [name for name in names if any((name, level) in values for level in LEVELS)]
    means = {place: float(np.mean(numbers)) for place, numbers in values.items()}
    return HeatTable(rows, LEVELS, means, digits=2, scale=scale)


def scores(view: View) -> Section:
    """Each score against the mIoU that the baseline then reached, coloured by target, and their correlations."""
    reached = by_cell(view.runs(BASELINE), MIOU)
    targets = sorted({pair[1] for pair in view.pairs})
    colours = {name: colour_of(index) for index, name in enumerate(targets)}
    parts, rows = [], []
    for score in SCORES:
        points: dict[str, list[Point]] = {}
        for run in view.results.scores:
            if score in run.values and run.cell in reached:
                tip = f"{' → '.join(run.pair)}, seed {run.about['seed']}"
                points.setdefault(run.pair[1], []).append(Point(run.values[score], reached[run.cell], tip))
        if sum(map(len, points.values())) < 2:
            continue
        rows.append(_correlation_row(score, points))
        series = [Series(target, colours[target], group) for target, group in points.items()]
        parts.append(("", Chart(series, score, f"mIoU of {BASELINE}", kind="points")))
    columns = ["score", "Kendall τ", "Pearson r", "mean τ within a target", "points"]
    values = {"keys": colours.items(), "parts": parts, "correlations": Table(columns, rows)}
    return Section("scores", "Scores and what came true", values if rows else {})


def _correlation_row(score: str, groups: Mapping[str, Sequence[Point]]) -> Row:
    """groups: (score, mIoU) of each run, by target."""
    sign = -1 if score == "PAD" else 1  # so that a useful score has a positive correlation

    def correlated(points: Sequence[Point]) -> tuple[float, float] | None:
        return correlation([sign * point.x for point in points], [point.y for point in points])

    points = [point for group in groups.values() for point in group]
    tau, r = correlated(points) or (None, None)
    within = [pair[0] for group in groups.values() if (pair := correlated(group)) is not None]
    numbers = [tau, r, float(np.mean(within)) if within else None]
    cells = [Cell(NOTHING if number is None else f"{number:+.2f}") for number in numbers]
    return Row(f"{score}{' (negated)' if sign < 0 else ''}", [*cells, Cell(f"{len(points)}")])
