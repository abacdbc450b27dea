"""Panels as HTML that needs nothing else: pictures are data URIs, colour bars are CSS gradients.

Classes of the elements: ``tmt-row`` > ``tmt-panel`` > ``tmt-caption``, ``tmt-pic`` (with ``tmt-mark``, a crosshair),
``tmt-bar``; the prefix keeps them apart from those of the page around.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import matplotlib
import numpy as np

from tmt_d2.pictures.panels import Colour, Panel, Row, Scale

STOPS = 12  # of a gradient; more cannot be told apart

CSS = """
.tmt-row { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 14px; margin-bottom: 14px; }
.tmt-row-label { font-weight: 600; margin: 4px 0 6px; opacity: .75; }
.tmt-panel { margin: 0; min-width: 0; }
.tmt-caption { display: flex; flex-direction: column; margin-bottom: 4px; line-height: 1.3; }
.tmt-caption b { font-size: 14px; } .tmt-caption span { font-size: 12px; opacity: .7; min-height: 1.3em; }
.tmt-pic { position: relative; width: fit-content; cursor: crosshair; border-radius: 6px; overflow: hidden; }
.tmt-pic img { display: block; width: auto; height: auto; max-width: 100%; max-height: 60vh; margin: 0;
  user-select: none; -webkit-user-drag: none; }
.tmt-mark { position: absolute; width: 15px; height: 15px; margin: -7.5px 0 0 -7.5px; border: 2px solid #fff;
  border-radius: 50%; box-shadow: 0 0 0 1.5px #000a, inset 0 0 0 1px #000a; pointer-events: none; }
.tmt-bar { margin: 6px 6px 0; font-size: 11px; }
.tmt-bar .colours { position: relative; height: 9px; border-radius: 3px; }
.tmt-bar .at { position: absolute; top: -3px; width: 3px; height: 15px; margin-left: -1.5px; background: #fff;
  outline: 1px solid #1b1f24; }
.tmt-bar .ticks { position: relative; height: 15px; margin-top: 2px; }
.tmt-bar .ticks span { position: absolute; transform: translateX(-50%); }
.tmt-bar .ticks span:first-child { transform: none; } .tmt-bar .ticks span:last-child { transform: translateX(-100%); }
.tmt-bar .label { text-align: center; opacity: .7; }
.tmt-legend { display: flex; flex-wrap: wrap; gap: 3px 14px; font-size: 12px; margin-bottom: 12px; }
.tmt-legend i { display: inline-block; width: 13px; height: 13px; margin-right: 5px; border-radius: 3px;
  vertical-align: -2px; outline: 1px solid #0003; }
@media (max-width: 700px) { .tmt-row { grid-template-columns: minmax(0, 1fr); } }
"""


def data_uri(picture: np.ndarray, quality: int = 88) -> str:
    """picture: (H, W, 3) uint8 RGB, as a JPEG."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def rows_html(rows: Sequence[Row], mark: tuple[float, float]) -> str:
    """mark: (x, y) in [0, 1], where every picture of the rows has its crosshair."""
    parts = []
    for row in rows:
        if row.label:
            parts.append(f'<div class="tmt-row-label">{escape(row.label)}</div>')
        panels = "".join(_panel(panel, mark) for panel in row.panels if panel is not None)
        parts.append(f'<div class="tmt-row">{panels}</div>')
    return "".join(parts)


def legend_html(legend: Sequence[tuple[str, Colour]]) -> str:
    items = (f'<span><i style="background: rgb{tuple(colour)}"></i>{escape(name)}</span>' for name, colour in legend)
    return f'<div class="tmt-legend">{"".join(items)}</div>'


def _panel(panel: Panel, mark: tuple[float, float]) -> str:
    x, y = (f"{100 * at:.2f}%" for at in mark)
    return (
        f'<figure class="tmt-panel"><figcaption class="tmt-caption"><b>{escape(panel.title)}</b>'
        f"<span>{escape(panel.subtitle)}</span></figcaption>"
        f'<div class="tmt-pic"><img alt="{escape(panel.title)}" src="{data_uri(panel.picture)}">'
        f'<i class="tmt-mark" style="left: {x}; top: {y}"></i></div>{_bar(panel.scale)}</figure>'
    )


def _bar(scale: Scale | None) -> str:
    if scale is None:
        return ""
    colours = (255 * matplotlib.colormaps[scale.colour_map](np.linspace(0, 1, STOPS))[:, :3]).round().astype(int)
    gradient = ", ".join(f"rgb{tuple(colour)}" for colour in colours.tolist())
    at = "" if scale.mark is None else f'<i class="at" style="left: {100 * scale.mark:.2f}%"></i>'
    ticks = "".join(f'<span style="left: {100 * at:.2f}%">{escape(text)}</span>' for at, text in scale.ticks)
    return (
        f'<div class="tmt-bar"><div class="colours" style="background: linear-gradient(to right, {gradient})">{at}</div>'
        f'<div class="ticks">{ticks}</div><div class="label">{escape(scale.label)}</div></div>'
    )
