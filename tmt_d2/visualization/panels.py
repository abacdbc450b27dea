"""Grid of titled panels as one figure: an RGB array, a PNG or a PDF.

Matplotlib's object-oriented API on the Agg canvas, without windows or global state. Sizes are in inches, so that text
has the same size in every figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write

DPI = 150
TEXT, MUTED = "#1b1f24", "#57606a"
MARGIN, GAP = 0.2, 0.18
LONGEST_SIDE = 3.6  # longer side of a panel's image
NARROWEST = 3.0  # column width, so that titles fit above a tall image
TITLE, SUBTITLE, BAR, ROW_LABEL, HEADING, LEGEND_LINE = 0.24, 0.19, 0.5, 0.34, 0.42, 0.22

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Scale:
    """Color bar; ticks: (position in [0, 1] of the color map, text); mark: position of a line."""

    color_map: str
    label: str
    ticks: Sequence[tuple[float, str]]
    mark: float | None = None


@dataclass(frozen=True)
class Panel:
    """Image (H, W, 3) uint8 RGB with a title; subtitle: one line of numbers below the title."""

    image: np.ndarray
    title: str
    subtitle: str = ""
    scale: Scale | None = None


@dataclass(frozen=True)
class PanelRow:
    """Panels side by side, None = an empty place; label: vertical text at the left."""

    panels: Sequence[Panel | None]
    label: str = ""


def draw(
    rows: Sequence[PanelRow],
    heading: str = "",
    legend: Sequence[tuple[str, Color]] = (),
) -> Figure:
    """Draw the rows below a heading, with a legend of colors at the bottom."""
    panels = [panel for row in rows for panel in row.panels if panel is not None]
    if not panels:
        raise ValueError("a figure needs at least one panel")
    columns = max(len(row.panels) for row in rows)
    left = MARGIN + (ROW_LABEL if any(row.label for row in rows) else 0)
    cell = max(NARROWEST, *(_image_size(panel)[0] for panel in panels))
    width = left + columns * cell + (columns - 1) * GAP + MARGIN
    longest = max((len(name) for name, _ in legend), default=0)
    per_line = max(1, int((width - 2 * MARGIN) // max(1.2, 0.3 + 0.068 * longest)))
    legend_lines = -(-len(legend) // per_line)
    heights = [_row_height(row) for row in rows]
    top = MARGIN + (HEADING if heading else 0)
    height = top + sum(heights) + GAP * (len(rows) - 1) + legend_lines * LEGEND_LINE + MARGIN

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def text(x: float, y: float, value: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, value, va="center", **{"color": TEXT, **style})

    if heading:
        text(MARGIN, MARGIN + 0.08, heading, fontsize=14, fontweight="bold")
    y = top
    for row, row_height in zip(rows, heights):
        present = [panel for panel in row.panels if panel is not None]
        titles = TITLE + (SUBTITLE if any(panel.subtitle for panel in present) else 0)
        image_height = max(_image_size(panel)[1] for panel in present)
        if row.label:
            middle = y + titles + image_height / 2
            text(MARGIN + 0.1, middle, row.label, rotation=90, ha="center", fontsize=11, fontweight="bold")
        for column, panel in enumerate(row.panels):
            if panel is None:
                continue
            x = left + column * (cell + GAP)
            text(x, y + TITLE / 2, panel.title, fontsize=11, fontweight="bold")
            if panel.subtitle:
                text(x, y + TITLE + SUBTITLE / 2 - 0.02, panel.subtitle, fontsize=9, color=MUTED)
            panel_width, panel_height = _image_size(panel)
            box = (x / width, 1 - (y + titles + panel_height) / height, panel_width / width, panel_height / height)
            axes = figure.add_axes(box)
            axes.imshow(panel.image, aspect="auto", interpolation="antialiased")
            axes.set_axis_off()
            if panel.scale is not None:
                bar = box[0] + 0.1 / width, box[1] - 0.16 / height, (cell - 0.2) / width, 0.1 / height
                _draw_scale(figure, bar, panel.scale)
        y += row_height + GAP
    if legend:
        handles = [
            Patch(facecolor="#{:02x}{:02x}{:02x}".format(*color), edgecolor="#00000040", label=name)
            for name, color in legend
        ]
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(MARGIN / width, MARGIN / 2 / height),
            ncols=per_line,
            frameon=False,
            fontsize=9,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.4,
            columnspacing=1.2,
        )
    return figure


def to_array(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8 RGB"""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | Path) -> None:
    """Write a .png or .pdf file atomically; its folder must exist."""
    suffix = Path(path).suffix[1:]
    if suffix not in ("png", "pdf"):
        raise UserError("figures are written as .png or .pdf", key=path)
    # Without a creation date, equal figures are equal files.
    metadata = {"CreationDate": None} if suffix == "pdf" else None
    with atomic_write(path) as file:
        figure.savefig(file, format=suffix, facecolor="white", metadata=metadata)


def _image_size(panel: Panel) -> tuple[float, float]:
    """Width and height in inches."""
    height, width = panel.image.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    return width * scale, height * scale


def _row_height(row: PanelRow) -> float:
    panels = [panel for panel in row.panels if panel is not None]
    return (
        TITLE
        + (SUBTITLE if any(panel.subtitle for panel in panels) else 0)
        + max(_image_size(panel)[1] + (BAR if panel.scale else 0) for panel in panels)
    )


def _draw_scale(figure: Figure, box: tuple[float, float, float, float], scale: Scale) -> None:
    axes = figure.add_axes(box)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), scale.color_map), cax=axes, orientation="horizontal")
    bar.set_ticks([at for at, _ in scale.ticks], labels=[label for _, label in scale.ticks])
    bar.ax.tick_params(labelsize=8, length=2, pad=2, colors=TEXT)
    bar.outline.set_linewidth(0.4)
    bar.set_label(scale.label, fontsize=8, labelpad=1, color=MUTED)
    if scale.mark is not None:
        bar.ax.axvline(scale.mark, color="white", linewidth=2.4)
        bar.ax.axvline(scale.mark, color=TEXT, linewidth=1.2)
