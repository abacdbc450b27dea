"""Statistics of transferability over a split: excluded classes, and queries that are left without positions.

Letters: L levels, N classes, D decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE, class_list_of
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.visualization.inspection import InspectedImage, inspect_image
from tmt_d2.visualization.panels import DPI, MUTED, TEXT


class ExclusionStatistics:
    """Sums over images; ``result`` divides them."""

    def __init__(self, classes: ClassList) -> None:
        self.images = 0
        self._classes = classes
        self._pixels = np.zeros(len(classes))
        self._levels: list[np.ndarray] = []  # (2, N) per level: sums of T, number of excluded pixels
        # (4,) per layer: queries with an empty mask, queries without transferable positions, and both of those with a
        # class.
        self._layers: list[np.ndarray] = []
        self._level_strides: list[int] = []
        self._layer_strides: list[int] = []
        self._queries = np.zeros(2)  # all, and those with a class
        self._p_t: float | None = None

    def add(self, inspected: InspectedImage, truth: np.ndarray) -> None:
        """Add one image; truth: (H, W) uint8 train ids, at any size."""
        levels = inspected.levels()
        if not levels:
            raise UserError("statistics of transferability need a TransferableMaskFormer")
        labeled = truth != IGNORE
        ids = truth[labeled]
        if not self.images:
            self._p_t = inspected.p_t
            self._levels = [np.zeros((2, len(self._classes))) for _ in levels]
            self._layers = [np.zeros(4) for _ in inspected.layers]
            self._level_strides = [level.grid.stride for level in levels]
            shapes = [layer.positions.predicted.shape[-2:] for layer in inspected.layers]
            self._layer_strides = [inspected.grid(shape).stride for shape in shapes]
        self.images += 1
        self._pixels += np.bincount(ids, minlength=len(self._classes))
        for sums, level in zip(self._levels, levels):
            maps = [level.t] if level.excluded is None else [level.t, level.excluded]
            for total, values in zip(sums, maps):
                total += np.bincount(ids, level.grid.to_image(values, truth.shape)[labeled], len(self._classes))
        has_class = inspected.has_class()
        self._queries += len(has_class), int(has_class.sum())
        for layer, counts in zip(inspected.layers, self._layers):
            empty, none = layer.positions.mask_empty[0], layer.positions.none_transferable[0]
            counts += [int(each.sum()) for each in (empty, none, empty & has_class, none & has_class)]

    def result(self) -> dict[str, Any]:
        """Return per level and class the mean T and the share of excluded pixels; per layer the shares of queries."""
        if not self.images:
            raise UserError("no image to take statistics of")
        present = self._pixels.nonzero()[0]
        names = [self._classes.names[i] for i in present]
        levels = []
        for stride, sums in zip(self._level_strides, self._levels):
            mean_t, excluded = (
                dict(zip(names, values)) for values in (sums[:, present] / self._pixels[present]).tolist()
            )
            excluded_share = None if self._p_t is None else excluded
            levels.append({"stride": stride, "mean_t": mean_t, "excluded_share": excluded_share})
        queries, with_class = self._queries
        layers = [
            {
                "layer": index,
                "stride": stride,
                "mask_empty": counts[0] / queries,
                "none_transferable": counts[1] / queries,
                "mask_empty_of_queries_with_class": counts[2] / with_class if with_class else None,
                "none_transferable_of_queries_with_class": counts[3] / with_class if with_class else None,
            }
            for index, (stride, counts) in enumerate(zip(self._layer_strides, self._layers))
        ]
        return {
            "images": self.images,
            "p_t": self._p_t,
            "colors": {name: list(self._classes.colors[i]) for name, i in zip(names, present)},
            "share_of_pixels": dict(zip(names, (self._pixels[present] / self._pixels.sum()).tolist())),
            "levels": levels,
            "layers": layers,
            "queries": int(queries),
            "queries_with_class": int(with_class),
        }


def collect(model: MaskFormer, items: Iterable[tuple[Mapping[str, Any], np.ndarray]]) -> dict[str, Any]:
    """Return ``ExclusionStatistics.result`` over pairs of model input and (H, W) train ids."""
    statistics = ExclusionStatistics(class_list_of(model))
    for record, truth in items:
        height, width = record["image"].shape[-2:]
        statistics.add(inspect_image(model, {**record, "height": height, "width": width}), truth)
    return statistics.result()


def ranked_classes(result: Mapping[str, Any]) -> list[str]:
    """Sort classes by their excluded share, or by mean T if nothing is excluded, highest mean over levels first."""
    key = "mean_t" if result["p_t"] is None else "excluded_share"
    means = {name: np.mean([level[key][name] for level in result["levels"]]) for name in result["share_of_pixels"]}
    return sorted(means, key=lambda name: -means[name])


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text, most excluded classes first."""
    levels = result["levels"]
    has_mask = result["p_t"] is not None
    rows: list[list[Any]] = []
    for name in ranked_classes(result):
        shares = [_percent(level["excluded_share"][name]) for level in levels] if has_mask else []
        means = [f"{level['mean_t'][name]:.3f}" for level in levels]
        rows.append([name, _percent(result["share_of_pixels"][name]), *means, *shares])
    if "proxy_a_distance" in result:
        rows.append(["proxy A-distance", "", *(f"{value:.2f}" for value in result["proxy_a_distance"])])
    headers = ["class", "pixels", *(f"T, stride {level['stride']}" for level in levels)]
    headers += [f"excluded, stride {level['stride']}" for level in levels] if has_mask else []
    layers = [
        [
            layer["layer"],
            layer["stride"],
            *(
                f"{_percent(layer[key])} ({_percent(layer[f'{key}_of_queries_with_class'])})"
                for key in ("mask_empty", "none_transferable")
            ),
        ]
        for layer in result["layers"]
    ]
    layer_headers = ["layer", "stride", "mask empty", "no transferable position (of queries with a class)"]
    options = {"disable_numparse": True, "colalign": ["left", *["right"] * (len(headers) - 1)]}
    return f"{tabulate(rows, headers, **options)}\n\n{tabulate(layers, layer_headers)}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def statistics_figure(result: Mapping[str, Any], heading: str) -> Figure:
    """Plot per level and class the excluded share of its pixels (bars), the mean T (dots) and p_T (dashed)."""
    names = ranked_classes(result)
    levels = result["levels"]
    height = 1.6 + 0.27 * len(names)
    left = max(1.25, 0.3 + 0.068 * max(map(len, names)))  # inches, for the names
    width = 0.35 + left + 3.3 * len(levels)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes_row = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    y = np.arange(len(names))
    colors = [np.array(result["colors"][name]) / 255 for name in names]
    distances = result.get("proxy_a_distance") or [None] * len(levels)
    for axes, level, distance in zip(axes_row, levels, distances):
        axes.grid(axis="x", color="#d8dee4", linewidth=0.6)
        axes.set_axisbelow(True)
        if level["excluded_share"] is not None:
            shares = [level["excluded_share"][name] for name in names]
            axes.barh(y, shares, color=colors, edgecolor="#00000040", linewidth=0.5, height=0.72)
            axes.axvline(result["p_t"], color=TEXT, linestyle="--", linewidth=1)
        means = [level["mean_t"][name] for name in names]
        axes.plot(means, y, "o", color="white", markeredgecolor=TEXT, markersize=5.5, markeredgewidth=1.2)
        note = "" if distance is None else f", proxy A-distance {distance:.2f}"
        axes.set_title(f"stride {level['stride']}{note}", fontsize=10.5, fontweight="bold", color=TEXT, loc="left")
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5", "0.75", "1"])
        axes.tick_params(labelsize=9, length=0, colors=TEXT)
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes_row[0].set_yticks(y, names)
    axes_row[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(heading, x=0.2 / width, ha="left", fontsize=14, fontweight="bold", color=TEXT)
    bars = f"bar: share of the class's pixels excluded from attention (dashed: p_T = {result['p_t'] or 0:g}); "
    note = ("" if result["p_t"] is None else bars) + "dot: mean T"
    figure.text(0.2 / width, 0.15 / height, note, fontsize=9, color=MUTED)
    margins = {"left": left / width, "right": 0.985, "top": 1 - 0.85 / height, "bottom": 0.6 / height}
    figure.subplots_adjust(**margins, wspace=0.1)
    return figure
