"""Figures of reports: predictions, transferability level by level, and queries layer by layer.

Each function takes one report, or several reports of one image to be shown side by side.
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
from tmt_d2.visualization.panels import Panel, PanelRow, Scale, draw
from tmt_d2.visualization.sizes import enlarge

UNIT = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]


def report_figures(reports: Sequence[AttentionReport], name: str, heads: Sequence[int]) -> Iterator[tuple[str, Figure]]:
    """Yield all figures of one image, each with its suffix of the file name."""
    yield "prediction", prediction_figure(reports, name)
    for report in reports:
        if report.levels:
            suffix = "transferability" if len(reports) == 1 else f"transferability_{report.name.replace('/', '-')}"
            yield suffix, transferability_figure(report, f"{name}: transferability ({report.name})")
    for queries in zip(*(report.queries for report in reports)):
        query, reason = queries[0].selected.query, queries[0].selected.reason
        heading = f"{name}: {queries[0].name}, query {query} (chosen by {reason})"
        file = f"query{query:02d}_{queries[0].name}" + ("" if reason == "number" else f"_{reason}")
        yield re.sub(r"[^\w.-]", "-", file), query_figure(reports, queries, heading, heads)


def prediction_figure(reports: Sequence[AttentionReport], heading: str) -> Figure:
    """Draw the image and each model's prediction; with a label also the ground truth and the errors."""
    first = reports[0]
    image = enlarge(first.image)
    predictions: list[Panel | None] = [
        Panel(label_overlay(image, report.prediction, report.classes), _titled("prediction", report, reports))
        for report in reports
    ]
    rows = [PanelRow([Panel(image, "image"), *predictions])]
    if first.truth is not None:
        errors: list[Panel | None] = [
            Panel(
                error_overlay(image, report.prediction, first.truth),
                _titled("errors", report, reports),
                "no labeled pixel" if report.error is None else f"{_percent(report.error)} of the labeled pixels",
            )
            for report in reports
        ]
        rows.append(PanelRow([Panel(label_overlay(image, first.truth, first.classes), "ground truth"), *errors]))
    legend = []
    for classes in dict.fromkeys(report.classes for report in reports):
        shown = [report.prediction for report in reports if report.classes == classes]
        shown += [first.truth[first.truth != IGNORE]] if first.truth is not None and first.classes == classes else []
        legend += classes.legend(np.concatenate([ids.ravel() for ids in shown]))
    return draw(rows, heading, legend + ([("error", REMOVED)] if first.truth is not None else []))


def transferability_figure(report: AttentionReport, heading: str) -> Figure:
    """Draw per level: T on a fixed scale, T by rank within the image, the excluded positions and the regions."""
    image = enlarge(report.image)
    rows = [level_row(image, level, report.p_t) for level in report.levels]
    legend = [("excluded from attention: highest T", REMOVED)] if report.p_t is not None else []
    return draw(rows, heading, legend)


def query_figure(
    reports: Sequence[AttentionReport], queries: Sequence[QueryReport], heading: str, heads: Sequence[int]
) -> Figure:
    """Draw one query of each model: its final mask, then per decoder layer the mask, the mask AND T, and the attention.

    Args:
        heads: attention heads to show besides their mean.
    """
    image = enlarge(reports[0].image)
    top: list[Panel | None] = []
    columns: list[list[list[Panel | None]]] = []
    for report, query in zip(reports, queries):
        of = "" if len(reports) == 1 else f" ({report.name})"
        layers = [layer_panels(image, layer, of, report.p_t is not None, heads) for layer in query.layers]
        prediction = label_overlay(image, report.prediction, report.classes)
        summary: list[Panel | None] = [
            Panel(mask_overlay(image, query.mask), _titled("final mask", report, reports), query_summary(query)),
            Panel(prediction, _titled("prediction", report, reports), "all queries together"),
        ]
        top += summary + [None] * (len(layers[0]) - len(summary))
        columns.append(layers)
    rows = [PanelRow(top)]
    for index in range(max(len(layers) for layers in columns)):
        panels: list[Panel | None] = []
        for layers in columns:
            panels += layers[index] if index < len(layers) else [None] * len(layers[0])
        layer = next(q.layers[index] for q in queries if index < len(q.layers))
        rows.append(PanelRow(panels, f"layer {layer.layer}, stride {layer.grid.stride}"))
    legend = [("in the mask, attended to", KEPT)]
    if any(report.p_t is not None for report in reports):
        legend.append(("in the mask, but excluded by T", REMOVED))
    return draw(rows, heading, legend)


def query_summary(query: QueryReport) -> str:
    """Return number, class, confidence and share of the image, in one line."""
    confidence, share = _percent(query.confidence), _percent(float(query.mask.mean()))
    return f"query {query.selected.query}: {query.name} {confidence}, {share} of the image"


def level_row(image: np.ndarray, level: LevelReport, p_t: float | None) -> PanelRow:
    """Draw T of one level on a fixed scale and by rank, the positions excluded by p_T (if any), and the regions."""
    size = image.shape[:2]
    t, grid = level.t, level.grid
    # Ranks are of the logits: a confident discriminator rounds T to 0 or 1.
    ranks = rankdata(-level.logits).reshape(t.shape)
    ranks = (ranks - 1) / max(t.size - 1, 1)
    quantiles = [(q, f"{np.quantile(t, q):.3g}") for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    panels: list[Panel | None] = [
        Panel(
            heat_overlay(image, grid.to_image(t, size), TRANSFERABILITY_MAP),
            "transferability T",
            f"{t.min():.3g} to {t.max():.3g}, mean {t.mean():.3g}",
            Scale(TRANSFERABILITY_MAP, "T: 0 = like the target, 1 = like the source", UNIT),
        ),
        Panel(
            heat_overlay(image, grid.to_image(ranks, size), TRANSFERABILITY_MAP),
            "T by rank within this image",
            "equal areas of every color",
            Scale(
                TRANSFERABILITY_MAP,
                "T, a quarter of the positions between ticks" + ("" if p_t is None else "; line: 1 - p_T"),
                quantiles,
                None if p_t is None else 1 - p_t,
            ),
        ),
    ]
    if level.excluded is not None and p_t is not None:
        excluded = grid.to_image(level.excluded, size)
        panels.append(
            Panel(
                removed_overlay(image, excluded),
                f"excluded, p_T = {p_t:g}",
                _excluded_share(int(level.excluded.sum()), t.size, p_t),
            )
        )
    regions = grid.to_image(level.regions, size)
    panels.append(
        Panel(
            outlined(image, regions), "ACTE regions", f"{len(np.unique(level.regions))} regions of {t.size} positions"
        )
    )
    return PanelRow(panels, f"stride {grid.stride}")


def _excluded_share(count: int, positions: int, p_t: float) -> str:
    text = f"{count} of {positions} positions, {100 * count / positions:.0f} %"
    if count < int(p_t * positions):  # Eq. 12 excludes T above the threshold, not the region whose T is the threshold
        text += ": regions stay whole"
    return text


def layer_panels(
    image: np.ndarray, layer: LayerReport, of: str, has_t: bool, heads: Sequence[int]
) -> list[Panel | None]:
    """Draw mask, mask AND T (if ``has_t``), mean attention and that of ``heads``; of: appended to the titles."""
    size, grid = image.shape[:2], layer.grid
    predicted = layer.predicted
    panels: list[Panel | None] = [
        Panel(
            mask_overlay(image, grid.to_image(predicted, size)),
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
            note = "no transferable position: M alone is used"
        else:
            note = f"{int(layer.allowed.sum())} of {int(predicted.sum())} left, {int(layer.removed.sum())} excluded"
        panels.append(
            Panel(
                mask_overlay(image, grid.to_image(layer.allowed, size), grid.to_image(layer.removed, size)),
                f"M AND transferable{of}",
                note,
            )
        )
    weights = [("mean of heads", layer.attention.mean(0))]
    for head in heads:
        if not 0 <= head < len(layer.attention):
            raise UserError(f"the decoder has heads 0 to {len(layer.attention) - 1}", key=f"head {head}")
        weights.append((f"head {head}", layer.attention[head]))
    for name, weight in weights:
        top = max(float(weight.max()), 1e-12)
        panels.append(
            Panel(
                heat_overlay(image, grid.to_image(weight / top, size, smooth=True), ATTENTION_MAP),
                f"attention, {name}{of}",
                f"{_percent(float(weight[layer.final_mask].sum()))} of it inside the final mask",
                Scale(ATTENTION_MAP, "attention weight of a position", [(p, f"{p * top:.2g}") for p, _ in UNIT]),
            )
        )
    return panels


def _titled(title: str, report: AttentionReport, reports: Sequence[AttentionReport]) -> str:
    return title if len(reports) == 1 else f"{title} ({report.name})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
