"""What transferability does to a whole split: which classes it excludes, and how often it leaves a query with nothing.

Letters: L levels, N classes, D decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE, class_list_of
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.visualization.inspection import View, look
from tmt_d2.visualization.panels import DPI, MUTED, TEXT


class Statistics:
    """Sums over images; ``result`` divides them."""

    def __init__(self, classes: ClassList) -> None:
        self.images = 0
        self._classes = classes
        self._pixels = np.zeros(len(classes))
        self._levels: list[np.ndarray] = []  # per level (2, N): sums of T and of excluded pixels
        self._layers: list[np.ndarray] = []  # per layer (4,): queries with an empty mask, left with nothing, ...
        self._strides: list[int] = []
        self._layer_strides: list[int] = []
        self._queries = np.zeros(2)
        self._p_t: float | None = None

    def add(self, view: View, truth: np.ndarray) -> None:
        """One image. truth: (H, W) uint8 train ids, at any size."""
        levels = view.levels()
        if not levels:
            raise UserError("statistics of transferability need a TransferableMaskFormer")
        labelled = truth != IGNORE
        ids = truth[labelled]
        if not self.images:
            self._strides = [level.grid.stride for level in levels]
            self._levels = [np.zeros((2, len(self._classes))) for _ in levels]
            self._layers = [np.zeros(4) for _ in view.layers]
            self._layer_strides = [view.grid(trace.positions.predicted.shape[-2:]).stride for trace in view.layers]
        self.images += 1
        self._p_t = view.p_t
        self._pixels += np.bincount(ids, minlength=len(self._classes))
        for sums, level in zip(self._levels, levels):
            maps = [level.t] if level.excluded is None else [level.t, level.excluded]
            for total, values in zip(sums, maps):
                total += np.bincount(ids, level.grid.to_picture(values, truth.shape)[labelled], len(self._classes))
        something = view.has_class()
        self._queries += len(something), int(something.sum())
        for trace, counts in zip(view.layers, self._layers):
            empty, nothing = trace.positions.mask_empty[0], trace.positions.none_transferable[0]
            counts += [int(each.sum()) for each in (empty, nothing, empty & something, nothing & something)]

    def result(self) -> dict[str, Any]:
        """Per level and class the mean T and the share of excluded pixels; per layer the shares of queries."""
        if not self.images:
            raise UserError("no image to take statistics of")
        present, names = self._pixels.nonzero()[0], self._classes.names
        levels = []
        for stride, sums in zip(self._strides, self._levels):
            means = sums[:, present] / self._pixels[present]
            mean_t, excluded = (dict(zip((names[i] for i in present), values)) for values in means.tolist())
            levels.append(
                {"stride": stride, "mean_t": mean_t, "excluded_share": None if self._p_t is None else excluded}
            )
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
        total = self._pixels.sum()
        return {
            "images": self.images,
            "p_t": self._p_t,
            "colors": {names[i]: list(self._classes.colors[i]) for i in present},
            "share_of_pixels": {names[i]: float(self._pixels[i] / total) for i in present},
            "levels": levels,
            "layers": layers,
            "queries": int(queries),
            "queries_with_class": int(with_class),
        }


def collect(model: MaskFormer, items: Iterable[tuple[Mapping[str, Any], np.ndarray]]) -> dict[str, Any]:
    """``Statistics.result`` over (model input, truth) pairs."""
    statistics = Statistics(class_list_of(model))
    for record, truth in items:
        height, width = record["image"].shape[-2:]
        statistics.add(look(model, {**record, "height": height, "width": width}), truth)
    return statistics.result()


def ranked_classes(result: Mapping[str, Any]) -> list[str]:
    """Classes from the most to the least excluded, mean over the levels; by mean T where nothing is excluded."""
    key = "mean_t" if result["p_t"] is None else "excluded_share"
    return sorted(
        result["share_of_pixels"], key=lambda name: float(np.mean([-level[key][name] for level in result["levels"]]))
    )


def table(result: Mapping[str, Any]) -> str:
    """The result as text, most excluded classes first."""
    levels = result["levels"]
    has_mask = result["p_t"] is not None
    strides = "".join(f"  stride {level['stride']:<3d}" for level in levels)
    width, name_width = len(strides), max(15, 1 + max(map(len, result["share_of_pixels"])))
    lines = [
        f"{'':{name_width}}{'':8}  {'mean T':<{width}}"
        + (f"  {'share excluded from attention':<{width}}" if has_mask else ""),
        f"{'class':{name_width}}{'pixels':>8}  {strides}" + (f"  {strides}" if has_mask else ""),
    ]
    for name in ranked_classes(result):
        line = f"{name:{name_width}}{100 * result['share_of_pixels'][name]:6.1f} %  "
        line += "".join(f"{level['mean_t'][name]:12.3f}" for level in levels)
        if has_mask:
            line += "  " + "".join(f"{100 * level['excluded_share'][name]:10.1f} %" for level in levels)
        lines.append(line.rstrip())
    if result.get("proxy_a_distance"):
        lines.append(
            f"{'proxy A-distance':{name_width + 10}}"
            + "".join(f"{value:12.2f}" for value in result["proxy_a_distance"])
        )
    lines += ["", "layer  stride  mask empty  left with nothing by T   (of queries that predict a class)"]
    for layer in result["layers"]:
        of_class = layer["mask_empty_of_queries_with_class"], layer["none_transferable_of_queries_with_class"]
        shares = "none" if None in of_class else " ".join(f"{100 * share:.1f} %" for share in of_class)
        lines.append(
            f"{layer['layer']:5d}{layer['stride']:8d}{100 * layer['mask_empty']:10.1f} %"
            f"{100 * layer['none_transferable']:22.1f} %   ({shares})"
        )
    return "\n".join(lines)


def statistics_figure(result: Mapping[str, Any], heading: str) -> Figure:
    """Per level and class: bars, the share of its pixels that is excluded; dots, its mean T; dashed, p_T."""
    names = ranked_classes(result)
    levels = result["levels"]
    height = 1.6 + 0.27 * len(names)
    left = max(1.25, 0.3 + 0.068 * max(map(len, names)))  # inches, for the names
    figure = Figure(figsize=(0.35 + left + 3.3 * len(levels), height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes_row = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    y = np.arange(len(names))
    colours = [np.array(result["colors"][name]) / 255 for name in names]
    for index, (axes, level) in enumerate(zip(axes_row, levels)):
        axes.grid(axis="x", color="#d8dee4", linewidth=0.6)
        axes.set_axisbelow(True)
        if level["excluded_share"] is not None:
            shares = [level["excluded_share"][name] for name in names]
            axes.barh(y, shares, color=colours, edgecolor="#00000040", linewidth=0.5, height=0.72)
            axes.axvline(result["p_t"], color=TEXT, linestyle="--", linewidth=1)
        axes.plot(
            [level["mean_t"][name] for name in names],
            y,
            "o",
            color="white",
            markeredgecolor=TEXT,
            markersize=5.5,
            markeredgewidth=1.2,
        )
        distance = (result.get("proxy_a_distance") or [None] * len(levels))[index]
        note = "" if distance is None else f", proxy A-distance {distance:.2f}"
        axes.set_title(f"stride {level['stride']}{note}", fontsize=10.5, fontweight="bold", color=TEXT, loc="left")
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5", "0.75", "1"])
        axes.tick_params(labelsize=9, length=0, colors=TEXT)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    axes_row[0].set_yticks(y, names)
    axes_row[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(heading, x=0.2 / figure.get_figwidth(), ha="left", fontsize=14, fontweight="bold", color=TEXT)
    bars = (
        ""
        if result["p_t"] is None
        else f"bar: share of the class's pixels excluded from attention (dashed: p_T = {result['p_t']:g}); "
    )
    figure.text(0.2 / figure.get_figwidth(), 0.15 / height, f"{bars}dot: mean T", fontsize=9, color=MUTED)
    figure.subplots_adjust(
        left=left / figure.get_figwidth(), right=0.985, top=1 - 0.85 / height, bottom=0.6 / height, wspace=0.1
    )
    return figure
