"""What was measured before fine-tuning: by the domain discriminators, and by scores, with what came true of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from ...data.label_spaces import CLASSES
from ...engine.drift import DRIFT
from ...engine.scoring import SCORES
from ..charts import colour_of, heat_table, legend, scatter
from ..html import NOTHING, Section, figure, side_by_side, table, table_row
from ..results import BASELINE, by_cell
from ..statistics import correlation
from ..view import MIOU, View

LEVELS = tuple(f"stride {stride}" for stride in (32, 16, 8))
MEASURES = (
    ("proxy_a_distance", "proxy A-distance"),
    ("std_of_t_within_image", "standard deviation of T within an image"),
    ("rank_stability", "rank stability: Spearman's correlation of two discriminators"),
)
DRIFTS = (
    ("spearman_to_step_0", "after fine-tuning: Spearman's correlation of T with T before it"),
    ("spread", "after fine-tuning: standard deviation of T within an image"),
    ("error", "after fine-tuning: error of E on held-out pictures of both domains"),
)


def estimators(view: View) -> Section:
    lead = (
        "What the domain discriminators measured on held-out images. Proxy A-distance: 0 = the domains cannot "
        "be told apart, 2 = perfectly. T: high = like the source. <i>After fine-tuning</i>: what became of T, on held-out "
        "target pictures; with the features of the frozen source model it cannot move."
    )
    runs = [run for run in view.results.estimator if not run.about.get("variant")]
    parts = []
    for key, caption in MEASURES if runs else ():
        by_pair: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            for level, value in zip(LEVELS, run.values[key]):
                by_pair.setdefault((" → ".join(run.pair), level), []).append(value)
        parts.append(_by_level([" → ".join(pair) for pair in view.pairs], by_pair, caption))
    if runs:
        by_class: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            for level, means in zip(LEVELS, run.values["mean_t_by_class"]):
                for name, value in means.items():
                    by_class.setdefault((name, level), []).append(value)
        parts.append(_by_level(CLASSES, by_class, "mean T by class, over all pairs"))
    parts += _drift(view)
    return Section("estimators", "Transferability", lead, side_by_side(parts))


def _drift(view: View) -> list[str]:
    """How far T had moved when fine-tuning ended, by method; nothing where no method has T."""
    values: dict[str, dict[tuple[str, str], list[float]]] = {key: {} for key, _ in DRIFTS}
    for method in view.methods:
        for run in view.runs(method):
            file = run.folder / f"{DRIFT}.json"
            measured = json.loads(file.read_text()) if file.is_file() else {}
            for key in values.keys() & measured.keys():
                for level, value in zip(LEVELS, measured[key]):
                    values[key].setdefault((method, level), []).append(value)
    return [_by_level(view.methods, values[key], caption) for key, caption in DRIFTS if values[key]]


def _by_level(names: Sequence[str], values: Mapping[tuple[str, str], list[float]], caption: str) -> str:
    """Means by (name, level); names without any value are left out."""
    rows = [name for name in names if any((name, level) in values for level in LEVELS)]
    means = {place: float(np.mean(found)) for place, found in values.items()}
    return figure(caption, heat_table(rows, LEVELS, means, digits=2))


def scores(view: View) -> Section:
    lead = (
        f"Scores of the source model, taken without training, against the mIoU that {BASELINE} fine-tuning then "
        "reached. Rank correlation within a target says how well a score chooses a source for it."
    )
    reached = by_cell(view.runs(BASELINE), MIOU)
    targets = sorted({pair[1] for pair in view.pairs})
    colours = {name: colour_of(index) for index, name in enumerate(targets)}
    charts, rows = [], []
    for score in SCORES:
        groups: dict[str, list[tuple[float, float, str]]] = {}
        for run in view.results.scores:
            if score in run.values and run.cell in reached:
                tip = f"{' → '.join(run.pair)}, seed {run.about['seed']}"
                groups.setdefault(run.pair[1], []).append((run.values[score], reached[run.cell], tip))
        if sum(map(len, groups.values())) < 2:
            continue
        rows.append(_correlation_row(score, groups))
        charts.append(f"<figure>{scatter(groups, score, f'mIoU of {BASELINE}', colours)}</figure>")
    if not rows:
        return Section("scores", "Scores and what came true", lead, "")
    columns = ["score", "Kendall τ", "Pearson r", "mean τ within a target", "points"]
    content = f"{legend(targets, colours)}{side_by_side(charts)}<h3>Correlation</h3>{table(columns, rows)}"
    return Section("scores", "Scores and what came true", lead, content)


def _correlation_row(score: str, groups: Mapping[str, Sequence[tuple[float, float, str]]]) -> str:
    """groups: (score, mIoU, tip) of each run, by target."""
    sign = -1 if score == "PAD" else 1  # so that a useful score has a positive correlation

    def correlated(points: Sequence[tuple[float, float, str]]) -> tuple[float, float] | None:
        return correlation([sign * point[0] for point in points], [point[1] for point in points])

    points = [point for group in groups.values() for point in group]
    tau, r = correlated(points) or (None, None)
    within = [found[0] for group in groups.values() if (found := correlated(group)) is not None]
    numbers = [tau, r, float(np.mean(within)) if within else None]
    cells = [f"<td>{NOTHING if number is None else f'{number:+.2f}'}</td>" for number in numbers]
    return table_row(f"{score}{' (negated)' if sign < 0 else ''}", [*cells, f"<td>{len(points)}</td>"])
