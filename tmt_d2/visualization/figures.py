"""From reports to figures: predictions, transferability level by level, and queries layer by layer.

Each function takes one report, or several of the same image to be shown side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.errors import UserError
from tmt_d2.visualization.inspection import AttentionReport, LayerReport, LevelReport, QueryReport
from tmt_d2.visualization.overlays import (
    ATTENTION_MAP,
    KEPT,
    REMOVED,
    TRANSFERABILITY_MAP,
    error_overlay,
    heat_overlay,
    label_overlay,
    mask_overlay,
    outlined,
    removed_overlay,
)
from tmt_d2.visualization.panels import Panel, Row, Scale, draw
from tmt_d2.visualization.sizes import enlarge

UNIT = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]


def report_figures(reports: Sequence[AttentionReport], name: str, heads: Sequence[int]) -> Iterator[tuple[str, Figure]]:
    """All figures of one image, each with what follows the image's name in its file name."""
    yield "prediction", prediction_figure(reports, name)
    for report in reports:
        if report.levels:
            suffix = "transferability" if len(reports) == 1 else f"transferability_{report.name.replace('/', '-')}"
            yield suffix, transferability_figure(report, f"{name}: transferability ({report.name})")
    for queries in zip(*(report.queries for report in reports)):
        query, reason = queries[0].choice.query, queries[0].choice.reason
        heading = f"{name}: {queries[0].name}, query {query} (chosen by {reason})"
        file = f"query{query:02d}_{queries[0].name}" + ("" if reason == "number" else f"_{reason}")
        yield re.sub(r"[^\w.-]", "-", file), query_figure(reports, queries, heading, heads)


def prediction_figure(reports: Sequence[AttentionReport], heading: str) -> Figure:
    """The image, what each model predicts, and, where it is known, the truth and the errors."""
    first = reports[0]
    picture = enlarge(first.picture)
    predictions: list[Panel | None] = [
        Panel(label_overlay(picture, report.prediction, report.classes), _named("prediction", report, reports))
        for report in reports
    ]
    rows = [Row([Panel(picture, "image"), *predictions])]
    if first.truth is not None:
        errors: list[Panel | None] = [
            Panel(
                error_overlay(picture, report.prediction, first.truth),
                _named("errors", report, reports),
                "nothing is labelled" if report.error is None else f"{_percent(report.error)} of the labelled pixels",
            )
            for report in reports
        ]
        rows.append(Row([Panel(label_overlay(picture, first.truth, first.classes), "ground truth"), *errors]))
    legend = []
    for classes in dict.fromkeys(report.classes for report in reports):
        shown = [report.prediction for report in reports if report.classes == classes]
        shown += [first.truth[first.truth != IGNORE]] if first.truth is not None and first.classes == classes else []
        legend += classes.legend(np.concatenate([ids.ravel() for ids in shown]))
    return draw(rows, heading, legend + ([("error", REMOVED)] if first.truth is not None else []))


def transferability_figure(report: AttentionReport, heading: str) -> Figure:
    """Per level: T on the one scale of all figures, T by rank within the image, what is excluded, and the regions."""
    picture = enlarge(report.picture)
    rows = [level_row(picture, level, report.p_t) for level in report.levels]
    legend = [("excluded from attention: highest T", REMOVED)] if report.p_t is not None else []
    return draw(rows, heading, legend)


def query_figure(
    reports: Sequence[AttentionReport], queries: Sequence[QueryReport], heading: str, heads: Sequence[int]
) -> Figure:
    """One query of each model: its final mask, then per decoder layer the mask, the mask AND T, and the attention.

    Args:
        heads: attention heads to show beside their mean.
    """
    picture = enlarge(reports[0].picture)
    top: list[Panel | None] = []
    columns: list[list[list[Panel | None]]] = []
    for report, query in zip(reports, queries):
        of = "" if len(reports) == 1 else f" ({report.name})"
        layers = [layer_panels(picture, layer, of, report.p_t is not None, heads) for layer in query.layers]
        prediction = label_overlay(picture, report.prediction, report.classes)
        summary: list[Panel | None] = [
            Panel(mask_overlay(picture, query.mask), _named("final mask", report, reports), query_summary(query)),
            Panel(prediction, _named("prediction", report, reports), "all queries together"),
        ]
        top += summary + [None] * (len(layers[0]) - len(summary))
        columns.append(layers)
    rows = [Row(top)]
    for index in range(max(len(layers) for layers in columns)):
        panels: list[Panel | None] = []
        for layers in columns:
            panels += layers[index] if index < len(layers) else [None] * len(layers[0])
        layer = next(q.layers[index] for q in queries if index < len(q.layers))
        rows.append(Row(panels, f"layer {layer.layer}, stride {layer.grid.stride}"))
    legend = [("in the mask, attended to", KEPT)]
    if any(report.p_t is not None for report in reports):
        legend.append(("in the mask, but excluded by T", REMOVED))
    return draw(rows, heading, legend)


def query_summary(query: QueryReport) -> str:
    """Number, class, confidence and share of the image, in one line."""
    confidence, share = _percent(query.confidence), _percent(float(query.mask.mean()))
    return f"query {query.choice.query}: {query.name} {confidence}, {share} of the image"


def level_row(picture: np.ndarray, level: LevelReport, p_t: float | None) -> Row:
    """T on its fixed scale, T by rank, what p_T excludes (unless p_t is None), and the regions of one level."""
    size = picture.shape[:2]
    t, grid = level.t, level.grid
    # Ranks are of the logits: a confident discriminator rounds T to 0 or 1.
    ranks = rankdata(-level.logits).reshape(t.shape)
    ranks = (ranks - 1) / max(t.size - 1, 1)
    quantiles = [(q, f"{np.quantile(t, q):.3g}") for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    panels: list[Panel | None] = [
        Panel(
            heat_overlay(picture, grid.to_picture(t, size), TRANSFERABILITY_MAP),
            "transferability T",
            f"{t.min():.3g} to {t.max():.3g}, mean {t.mean():.3g}",
            Scale(TRANSFERABILITY_MAP, "T: 0 = like the target, 1 = like the source", UNIT),
        ),
        Panel(
            heat_overlay(picture, grid.to_picture(ranks, size), TRANSFERABILITY_MAP),
            "T by rank within this image",
            "contrast stretched: equal areas of every colour",
            Scale(
                TRANSFERABILITY_MAP,
                "T, a quarter of the positions between ticks" + ("" if p_t is None else "; line: 1 - p_T"),
                quantiles,
                None if p_t is None else 1 - p_t,
            ),
        ),
    ]
    if level.excluded is not None and p_t is not None:
        excluded = grid.to_picture(level.excluded, size)
        panels.append(
            Panel(
                removed_overlay(picture, excluded),
                f"excluded, p_T = {p_t:g}",
                _excluded_share(int(level.excluded.sum()), t.size, p_t),
            )
        )
    regions = grid.to_picture(level.regions, size)
    panels.append(
        Panel(
            outlined(picture, regions), "ACTE regions", f"{len(np.unique(level.regions))} regions of {t.size} positions"
        )
    )
    return Row(panels, f"stride {grid.stride}")


def _excluded_share(count: int, positions: int, p_t: float) -> str:
    text = f"{count} of {positions} positions, {100 * count / positions:.0f} %"
    if count < int(p_t * positions):  # Eq. 12 excludes what is above the threshold, not the region that has its T
        text += ": regions stay whole"
    return text


def layer_panels(
    picture: np.ndarray, layer: LayerReport, of: str, has_t: bool, heads: Sequence[int]
) -> list[Panel | None]:
    """Mask, mask AND T (where ``has_t``), and the mean attention, then those of ``heads``; of: behind the titles."""
    size, grid = picture.shape[:2], layer.grid
    predicted = layer.predicted
    panels: list[Panel | None] = [
        Panel(
            mask_overlay(picture, grid.to_picture(predicted, size)),
            f"predicted mask M{of}",
            "empty: every position is attended to"
            if layer.mask_empty
            else f"{int(predicted.sum())} of {predicted.size} positions",
        )
    ]
    if has_t:
        if layer.mask_empty:
            note = "M is empty: every position is attended to"
        elif layer.none_transferable:
            note = "T leaves nothing: M alone is obeyed"
        else:
            note = f"{int(layer.allowed.sum())} of {int(predicted.sum())} left, {int(layer.removed.sum())} excluded"
        panels.append(
            Panel(
                mask_overlay(picture, grid.to_picture(layer.allowed, size), grid.to_picture(layer.removed, size)),
                f"M AND transferable{of}",
                note,
            )
        )
    weights = [("mean of heads", layer.attention.mean(0))]
    for head in heads:
        if not 0 <= head < len(layer.attention):
            raise UserError(f"head {head} does not exist: the decoder has heads 0 to {len(layer.attention) - 1}")
        weights.append((f"head {head}", layer.attention[head]))
    for name, weight in weights:
        top = max(float(weight.max()), 1e-12)
        panels.append(
            Panel(
                heat_overlay(picture, grid.to_picture(weight / top, size, smooth=True), ATTENTION_MAP),
                f"attention, {name}{of}",
                f"{_percent(float(weight[layer.final_mask].sum()))} of it inside the final mask",
                Scale(ATTENTION_MAP, "attention weight of a position", [(p, f"{p * top:.2g}") for p, _ in UNIT]),
            )
        )
    return panels


def _named(what: str, report: AttentionReport, reports: Sequence[AttentionReport]) -> str:
    return what if len(reports) == 1 else f"{what} ({report.name})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
