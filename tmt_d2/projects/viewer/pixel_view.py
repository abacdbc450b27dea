"""HTML of the query that owns a pixel."""

from __future__ import annotations

from tmt_d2.visualization.figures import layer_panels, level_row, query_summary
from tmt_d2.visualization.html import templates
from tmt_d2.visualization.inspection import AttentionReport
from tmt_d2.visualization.overlays import KEPT, REMOVED, label_overlay, mask_overlay
from tmt_d2.visualization.panels import Panel, PanelRow
from tmt_d2.visualization.sizes import enlarge

TEMPLATES = templates("tmt_d2.projects.viewer")


def pixel_html(report: AttentionReport, at: tuple[float, float]) -> str:
    """Render a report of one query in one layer, with the level that this layer attends to.

    Args:
        at: place of the crosshair, (x, y) in [0, 1].
    """
    image = enlarge(report.image)
    (query,) = report.queries
    (layer,) = query.layers
    prediction = label_overlay(image, report.prediction, report.classes)
    summary = [
        Panel(image, "image", "click any image to choose a pixel"),
        Panel(prediction, "prediction", "all queries together"),
        Panel(mask_overlay(image, query.mask), "final mask of the pixel's query", query_summary(query)),
    ]
    attention = PanelRow(
        layer_panels(image, layer, "", report.p_t is not None, ()),
        f"Attention of query {query.selected.query} in decoder layer {layer.layer}, stride {layer.grid.stride}",
    )
    transferability = []
    if report.levels:
        level = report.levels[layer.level]
        panels = level_row(image, level, report.p_t).panels[-3:]  # T by rank, excluded, regions
        t = f"T of this image is {level.t.min():.3g} to {level.t.max():.3g}, mean {level.t.mean():.3g}"
        transferability.append(PanelRow(panels, f"Transferability at stride {level.grid.stride}: {t}"))
    marks = [("attended to", KEPT)] + ([("excluded by T", REMOVED)] if report.p_t is not None else [])
    return TEMPLATES.get_template("pixel.html").render(
        image=PanelRow(summary),
        classes=report.classes.legend(report.prediction),
        attention=attention,
        marks=marks,
        transferability=transferability,
        at=at,
    )
