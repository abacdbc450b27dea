"""What is shown for a clicked pixel, as HTML."""

from __future__ import annotations

from tmt_d2.visualization.figures import layer_panels, level_row, query_summary
from tmt_d2.visualization.html import templates
from tmt_d2.visualization.inspection import AttentionReport
from tmt_d2.visualization.overlays import KEPT, REMOVED, label_overlay, mask_overlay
from tmt_d2.visualization.panels import Panel, Row
from tmt_d2.visualization.sizes import enlarge

TEMPLATES = templates("tmt_d2.projects.viewer")


def pixel_html(report: AttentionReport, at: tuple[float, float]) -> str:
    """The query of a report of one query in one layer, and the level that this layer attends to.

    at: where the crosshair is, (x, y) in [0, 1].
    """
    picture = enlarge(report.picture)
    (query,) = report.queries
    (layer,) = query.layers
    image = Row(
        [
            Panel(picture, "image", "click any picture to choose a pixel"),
            Panel(label_overlay(picture, report.prediction, report.classes), "prediction", "all queries together"),
            Panel(mask_overlay(picture, query.mask), "final mask of the pixel's query", query_summary(query)),
        ]
    )
    attention = Row(
        layer_panels(picture, layer, "", report.p_t is not None, ()),
        f"Attention of query {query.choice.query} in decoder layer {layer.layer}, stride {layer.grid.stride}",
    )
    transferability = []
    if report.levels:
        level = report.levels[layer.level]
        panels = level_row(picture, level, report.p_t).panels[-3:]  # T by rank, excluded, regions
        t = f"T of this image is {level.t.min():.3g} to {level.t.max():.3g}, mean {level.t.mean():.3g}"
        transferability.append(Row(panels, f"Transferability at stride {level.grid.stride}: {t}"))
    classes = report.classes.legend(report.prediction)
    marks = [("attended to", KEPT)] + ([("excluded by T", REMOVED)] if report.p_t is not None else [])
    return TEMPLATES.get_template("pixel.html").render(
        image=image, classes=classes, attention=attention, marks=marks, transferability=transferability, at=at
    )
