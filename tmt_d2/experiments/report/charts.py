"""Small SVG charts as text: lines with bands, points, intervals, and tables coloured as heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#2f6fde", "#e07b24", "#2a9d6f", "#b13fa8", "#c43d3d", "#6b7280", "#0e8fa6", "#8a6d1f", "#5b4bd6")


class Series(NamedTuple):
    """points: (x, y); band: (x, low, high) or empty."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


def colour_of(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class _Axes:
    def __init__(self, xs: Sequence[float], ys: Sequence[float], width: int, height: int, small: bool):
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = (34, 8, 8, 20) if small else (52, 14, 12, 40)
        pad_x = (max(xs) - min(xs) or 1) * 0.04
        pad_y = (max(ys) - min(ys) or 1) * 0.08
        self.x0, self.x1 = min(xs) - pad_x, max(xs) + pad_x
        self.y0, self.y1 = min(ys) - pad_y, max(ys) + pad_y
        self.small = small

    def x(self, value: float) -> float:
        return round(self.left + (value - self.x0) / (self.x1 - self.x0) * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        inner = self.height - self.top - self.bottom
        return round(self.top + (self.y1 - value) / (self.y1 - self.y0) * inner, 1)

    def frame(self, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> str:
        parts = []
        count = 3 if self.small else 5
        for value in ticks(self.y0, self.y1, count):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="tick" x="{self.left - 6}" y="{y + 3.5}" text-anchor="end">{value:g}</text>')
        labelled = x_ticks or [(value, f"{value:g}") for value in ticks(self.x0, self.x1, count)]
        for value, text in labelled:
            x, y = self.x(value), self.height - self.bottom + 14
            parts.append(f'<text class="tick" x="{x}" y="{y}" text-anchor="middle">{escape(text)}</text>')
        base = self.height - self.bottom
        parts.append(f'<line class="axis" x1="{self.left}" x2="{self.width - self.right}" y1="{base}" y2="{base}"/>')
        if not self.small:
            middle = (self.left + self.width - self.right) / 2
            parts.append(
                f'<text class="label" x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
            )
            centre = (self.top + base) / 2
            parts.append(
                f'<text class="label" text-anchor="middle" transform="translate(13 {centre}) rotate(-90)">'
                f"{escape(y_label)}</text>"
            )
        return "".join(parts)


def _svg(width: int, height: int, title: str, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{content}</svg>'
    )


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    colours: Mapping[str, str],
    width: int = 460,
    height: int = 280,
    small: bool = False,
    markers: bool = True,
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """Lines through the points of each series, with its band behind."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    ys += [y for each in series for _, low, high in each.band for y in (low, high)]
    axes = _Axes(xs, ys, width, height, small)
    parts = [axes.frame(x_label, y_label, x_ticks)]
    for each in series:
        colour = colours[each.name]
        if each.band:
            there = [f"{axes.x(x)},{axes.y(high)}" for x, _, high in each.band]
            back = [f"{axes.x(x)},{axes.y(low)}" for x, low, _ in reversed(each.band)]
            parts.append(f'<polygon points="{" ".join(there + back)}" fill="{colour}" opacity="0.15"/>')
        path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in each.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{1.5 if small else 2}"/>')
        for x, y in each.points if markers else ():
            tip = f"{each.name}: {y:.2f} at {x:g}"
            parts.append(
                f'<circle cx="{axes.x(x)}" cy="{axes.y(y)}" r="3.5" fill="{colour}"><title>{escape(tip)}</title></circle>'
            )
    return _svg(width, height, f"{y_label} against {x_label}", "".join(parts))


def scatter(
    groups: Mapping[str, Sequence[tuple[float, float, str]]], x_label: str, y_label: str, colours: Mapping[str, str]
) -> str:
    """Points (x, y, tip) coloured by group."""
    points = [point for group in groups.values() for point in group]
    axes = _Axes([p[0] for p in points], [p[1] for p in points], 380, 280, False)
    parts = [axes.frame(x_label, y_label)]
    for name, group in groups.items():
        for x, y, tip in group:
            parts.append(
                f'<circle cx="{axes.x(x)}" cy="{axes.y(y)}" r="5" fill="{colours[name]}" fill-opacity="0.75" '
                f'stroke="{colours[name]}"><title>{escape(tip)}</title></circle>'
            )
    return _svg(380, 280, f"{y_label} against {x_label}", "".join(parts))


def interval_chart(
    rows: Sequence[tuple[str, float, float | None, float | None, Sequence[float]]], x_label: str, width: int = 720
) -> str:
    """One row (name, mean, low, high, single values) each, around a line at 0; green above, red below, grey unclear."""
    numbers = [0.0] + [v for _, mean, low, high, values in rows for v in (mean, low, high, *values) if v is not None]
    height = 46 + 38 * len(rows)
    axes = _Axes(numbers, [0, 1], width, height, False)
    axes.left = 170
    base = height - axes.bottom
    parts = []
    for value in ticks(axes.x0, axes.x1, 8):
        x = axes.x(value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="6" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{base + 14}" text-anchor="middle">{value:+g}</text>')
    zero = axes.x(0)
    parts.append(f'<line class="axis" x1="{zero}" x2="{zero}" y1="6" y2="{base}"/>')
    parts.append(
        f'<text class="label" x="{(170 + width) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for index, (name, mean, low, high, values) in enumerate(rows):
        y = 24 + 38 * index
        clear = low is not None and high is not None and (low > 0 or high < 0)
        kind = ("good" if mean > 0 else "bad") if clear else "unclear"
        parts.append(f'<text class="row" x="158" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        for value in values:
            parts.append(
                f'<circle class="dot" cx="{axes.x(value)}" cy="{y}" r="3"><title>{value:+.2f}</title></circle>'
            )
        if low is not None and high is not None:
            parts.append(
                f'<line class="{kind}" stroke-width="6" x1="{axes.x(low)}" x2="{axes.x(high)}" y1="{y}" y2="{y}"/>'
            )
        parts.append(
            f'<circle class="{kind} mean" cx="{axes.x(mean)}" cy="{y}" r="4.5"><title>{mean:+.2f}</title></circle>'
        )
    return _svg(width, height, x_label, "".join(parts))


def heat_colour(value: float, low: float, high: float, diverging: bool = False) -> str:
    """Background of a cell: pale to blue, or red - white - green around 0. Text on it stays dark."""
    if diverging:
        share = max(-1.0, min(1.0, value / (max(abs(low), abs(high)) or 1)))
        strong = (42, 157, 111) if share > 0 else (208, 68, 68)
        share = abs(share) * 0.75
    else:
        share = 0.05 + 0.75 * ((value - low) / (high - low) if high > low else 0.5)
        strong = (64, 128, 232)
    mixed = (round(255 + (part - 255) * share) for part in strong)
    return "#" + "".join(f"{part:02x}" for part in mixed)


def heat_table(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    *,
    corner: str = "",
    diverging: bool = False,
    scale: float = 1.0,
    digits: int = 1,
) -> str:
    """A table whose cells are coloured by value; a cell without a value stays empty.

    diverging: red below 0, green above, the full colour from ``scale`` on; else from the least to the greatest value.
    """
    low, high = (min(values.values()), max(values.values())) if values else (0.0, 1.0)
    if diverging:
        low, high = -scale, scale
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = []
    for row in rows:
        cells = []
        for column in columns:
            if (row, column) not in values:
                cells.append('<td class="empty"></td>')
                continue
            value = values[row, column]
            text = f"{value:+.{digits}f}" if diverging else f"{value:.{digits}f}"
            cells.append(f'<td class="heat" style="background:{heat_colour(value, low, high, diverging)}">{text}</td>')
        body.append(f"<tr><th>{escape(row)}</th>{''.join(cells)}</tr>")
    return f'<table class="heatmap"><tr><th class="corner">{escape(corner)}</th>{head}</tr>{"".join(body)}</table>'


def legend(names: Sequence[str], colours: Mapping[str, str]) -> str:
    items = (f'<span class="key"><i style="background:{colours[name]}"></i>{escape(name)}</span>' for name in names)
    return f'<div class="legend">{"".join(items)}</div>'
