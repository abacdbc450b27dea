"""Measurements before fine-tuning: by the domain discriminators, and by scores, compared with the mIoU reached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup

from tmt_d2.adaptation import BASELINE
from tmt_d2.experiments.results import by_cell, classes_of
from tmt_d2.experiments.scoring import SCORES
from tmt_d2.experiments.statistics import correlation
from tmt_d2.projects.report.charts import Chart, Series, color_of
from tmt_d2.projects.report.data import MIOU, ReportData
from tmt_d2.projects.report.elements import NOTHING, Block, Cell, Figures, HeatTable, Legend, Section, Table, TableRow

LEVELS = tuple(f"stride {stride}" for stride in (32, 16, 8))
# Key, caption, and range of the quantity.
MEASURES = (
    ("proxy_a_distance", "proxy A-distance", (0.0, 2.0)),
    ("std_of_t_within_image", "standard deviation of T within an image", (0.0, 0.5)),
    ("rank_stability", "rank stability: Spearman's correlation of two discriminators", (0.0, 1.0)),
)
ESTIMATORS = Markup(
    "Measurements of the domain discriminators on held-out images. Proxy A-distance: 0 = the domains cannot be "
    "distinguished, 2 = perfectly. T: high = like the source."
)


def estimators(data: ReportData) -> Section:
    """Measurements of each discriminator, by level."""
    runs = [run for run in data.results.estimator if not run.about.get("variant")]
    pairs = [" → ".join(pair) for pair in data.pairs]
    parts = [
        (caption, _by_level(pairs, [(" → ".join(run.pair), run.values[key]) for run in runs], scale))
        for key, caption, scale in MEASURES
    ]
    classes = classes_of([*data.results.fine_tuned, *data.results.evaluation])
    t_of_classes = [
        (name, [means.get(name) for means in run.values["mean_t_by_class"]]) for run in runs for name in classes
    ]
    parts.append(("mean T by class, over all pairs", _by_level(classes, t_of_classes)))
    parts = [(caption, table) for caption, table in parts if table.values]
    return Section("estimators", "Transferability", ESTIMATORS, [Figures(parts)] if parts else [])


def _by_level(
    names: Sequence[str],
    measured: Iterable[tuple[str, Sequence[float | None]]],
    scale: tuple[float, float] = (0.0, 1.0),
) -> HeatTable:
    """Means of the measured (name, value of each level), in the order of names."""
    values: dict[tuple[str, str], list[float]] = {}
    for name, by_level in measured:
        for level, value in zip(LEVELS, by_level):
            if value is not None:
                values.setdefault((name, level), []).append(value)
    rows = [name for name in names if any((name, level) in values for level in LEVELS)]
    means = {place: float(np.mean(numbers)) for place, numbers in values.items()}
    return HeatTable(rows, LEVELS, means, digits=2, scale=scale)


def scores(data: ReportData) -> Section:
    """Each score against the mIoU that the baseline reached, colored by target, and their correlations."""
    reached = by_cell(data.runs(BASELINE), MIOU)
    colors = {name: color_of(index) for index, name in enumerate(sorted({pair[1] for pair in data.pairs}))}
    parts, rows = [], []
    for score in SCORES:
        runs = [run for run in data.results.scores if score in run.values and run.cell in reached]
        series = []
        for target, color in colors.items():
            group = [run for run in runs if run.pair[1] == target]
            series.append(
                Series(target, color, [run.values[score] for run in group], [reached[run.cell] for run in group])
            )
        if len(runs) > 1:
            rows.append(_correlation_row(score, series))
            parts.append(("", Chart(series, score, f"mIoU of {BASELINE}", "points")))
    columns = ["score", "Kendall τ", "Pearson r", "mean τ within a target", "points"]
    blocks: list[Block] = [Legend([*colors.items()]), Figures(parts), Table(columns, rows)]
    lead = (
        f"Scores of the source model, taken without training, against the mIoU that {BASELINE} fine-tuning then "
        "reached. Rank correlation within a target says how well a score chooses a source for it."
    )
    return Section("scores", "Scores and results", lead, blocks if rows else [])


def _correlation_row(score: str, series: Sequence[Series]) -> TableRow:
    """series: score (x) and mIoU (y) of each run, by target."""
    sign = -1 if score == "PAD" else 1  # so that a useful score has a positive correlation

    def correlated(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
        return correlation([sign * value for value in x], y)

    x, y = ([value for each in series for value in values(each)] for values in (lambda s: s.x, lambda s: s.y))
    tau, r = correlated(x, y) or (None, None)
    within = [pair[0] for each in series if (pair := correlated(each.x, each.y)) is not None]
    numbers = [tau, r, float(np.mean(within)) if within else None]
    cells = [Cell(NOTHING if number is None else f"{number:+.2f}") for number in numbers]
    return TableRow(f"{score}{' (negated)' if sign < 0 else ''}", [*cells, Cell(f"{len(x)}")])
