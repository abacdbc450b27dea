"""The page: one section per question, from the paper's table to the settings, in one file without anything outside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import yaml

from ..data.label_spaces import CLASSES
from ..engine.scoring import SCORES
from .charts import Series, colour_of, heat_table, interval_chart, legend, line_chart, scatter
from .examples import Example
from .paper import paper_miou
from .results import BASELINE, METRICS, Pair, Results, Run, by_cell, curve, setting
from .statistics import Difference, correlation, paired_difference, spread
from .style import CSS, JS
from .tables import cell_text, pair_values

Section = tuple[str, str, str, str]  # anchor, heading, lead, content
STRIDES = (32, 16, 8)
_Points = dict[str, dict[Any, dict[tuple[Pair, int], float]]]  # method, value of a setting, cell
NOTHING = "&ndash;"
LARGE_GAIN = 3.0  # points that have the full colour: the same for every method, so that noise stays pale
# The browser itself refuses to load anything that is not in the page.
ONLY_INLINE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render_page(results: Results, examples: Sequence[Example] = (), title: str = "Transfer matrix") -> str:
    """The whole page as HTML text."""
    page = _Page(results)
    sections = [section for section in page.sections(examples) if section[3]]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2><p class="lead">{lead}</p>{content}</section>'
        for anchor, heading, lead, content in sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{ONLY_INLINE}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{CSS}</style></head><body><header><div><h1>{escape(title)}</h1><p>{page.verdict()}</p></div></header>"
        f"<nav><div>{links}</div></nav><main>{page.tiles()}{body}</main><script>{JS}</script></body></html>\n"
    )


class _Page:
    def __init__(self, results: Results):
        self.results = results
        self.methods, self.fractions, self.pairs = results.methods(), results.fractions(), results.pairs()
        self.others = [method for method in self.methods if method != BASELINE]
        names = [*self.methods, *sorted({run.method for run in results.swept} - set(self.methods))]
        self.colours = {name: colour_of(index) for index, name in enumerate(names)}
        # What most of the page is about; the first is all labels where there are several.
        self.fraction = self.fractions[0] if self.fractions else 1.0

    def sections(self, examples: Sequence[Example]) -> list[Section]:
        return [
            ("table", "Results", self._table_lead(), self._tables()),
            (
                "differences",
                f"Minus {BASELINE}",
                "Difference in mIoU to full fine-tuning on the same pair with the same seed. Dots are single runs; bars "
                "are 95 % bootstrap intervals of the mean, in which pairs are resampled with all their seeds. "
                "<b>A grey bar includes 0: no difference has been shown.</b> Pairs share source models, so intervals are rather "
                "too narrow than too wide.",
                self._differences(),
            ),
            ("heat", "Source by target", "Mean mIoU in percent; gains are in points.", self._heat_maps()),
            (
                "sweeps",
                "Sweeps",
                "Mean over the pairs and seeds that have every value; the band is ± one standard deviation over seeds.",
                self._sweeps(),
            ),
            (
                "labels",
                "Few labels",
                "mIoU by the share of the target's labelled training images; the band is ± one standard deviation over seeds.",
                self._label_curves(),
            ),
            (
                "classes",
                "Classes",
                f"Mean gain in IoU over {BASELINE}, in points, over the pairs whose target has the class.",
                self._classes(),
            ),
            (
                "estimators",
                "Transferability",
                "What the domain discriminators measured on held-out images. Proxy A-distance: 0 = the domains cannot "
                "be told apart, 2 = perfectly. T: high = like the source.",
                self._estimators(),
            ),
            (
                "scores",
                "Scores and what came true",
                f"Scores of the source model, taken without training, against the mIoU that {BASELINE} fine-tuning then "
                "reached. Rank correlation within a target says how well a score chooses a source for it.",
                self._scores(),
            ),
            ("curves", "Training", "Loss during fine-tuning, smoothed, one line per method.", self._curves()),
            ("examples", "Examples", "Move the bar to compare two views of one picture.", self._examples(examples)),
            ("settings", "Settings", "What the runs have in common, from their config files.", self._settings()),
        ]

    # --- summary

    def _difference(self, method: str, metric: str = METRICS[0], fraction: float | None = None) -> Difference | None:
        fraction = self.fraction if fraction is None else fraction
        of = self.results.of
        return paired_difference(by_cell(of(method, fraction), metric), by_cell(of(BASELINE, fraction), metric))

    def verdict(self) -> str:
        seeds = len(self.results.seeds())
        text = f"{len(self.pairs)} pair{'s' if len(self.pairs) != 1 else ''}, {seeds} seed{'s' if seeds != 1 else ''}, {_share(self.fraction)}. "
        method = "tmt" if "tmt" in self.others else (self.others[0] if self.others else "")
        found = self._difference(method) if method else None
        if found is None:
            return text + "No two methods to compare yet."
        text += f"{escape(method)} minus {BASELINE}: {found.mean:+.2f} points of mIoU"
        if found.low is None:
            return text + ", from too few runs for an interval."
        text += f", 95 % interval {found.low:+.2f} to {found.high:+.2f}: "
        if not found.is_clear:
            return text + "no difference has been shown."
        return text + ("a gain." if found.mean > 0 else "a loss.")

    def tiles(self) -> str:
        hours = sum(run.seconds for kind in vars(self.results).values() for run in kind) / 3600
        tiles = [(str(len(self.results.fine_tuned) + len(self.results.swept)), "fine-tuned models")]
        tiles += [(str(len(self.results.source)), "source models"), (f"{hours:.1f} h", "of computing")]
        for method in self.methods:
            values = by_cell(self.results.of(method, self.fraction), METRICS[0]).values()
            if values:
                tiles.append((f"{np.mean(list(values)):.1f}", f"mean mIoU, {method}"))
        items = "".join(f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>' for value, name in tiles)
        return f'<div class="tiles">{items}</div>'

    # --- tables

    def _table_lead(self) -> str:
        lead = "In percent; mean"
        lead += " ± standard deviation over seeds" if len(self.results.seeds()) > 1 else ", one seed"
        lead += f". Below each value its difference to {BASELINE}. The best of a row is bold."
        if self._paper():
            lead += (
                " <i>Paper</i>: the figure of arXiv 2504.05774 for the pair of that name; other models, budgets and, with "
                "embedded scenes, other images: to be compared in direction only."
            )
        missing = [m for m in ("leep", "otce") if m in self.methods]
        if missing:
            lead += f" {' and '.join(missing)} are our reading of methods that are not published in full."
        return lead

    def _paper(self) -> dict[Pair, dict[str, float]]:
        return {pair: values for pair, values in paper_miou().items() if pair in self.pairs}

    def _tables(self) -> str:
        panes = []
        for fraction in self.fractions or [1.0]:
            for metric in METRICS:
                label = metric if len(self.fractions) < 2 else f"{metric}, {_share(fraction)}"
                panes.append((label, self._table(metric, fraction)))
        return _tabs("table", panes)

    def _table(self, metric: str, fraction: float) -> str:
        values = {method: pair_values(self.results, method, fraction, metric) for method in self.methods}
        before: dict[Pair, list[float]] = {}
        for (pair, _), value in by_cell(self.results.evaluation, metric).items():
            before.setdefault(pair, []).append(value)
        paper = self._paper() if metric == METRICS[0] else {}
        head = "".join(f"<th>{escape(name)}</th>" for name in ["source → target", "before", *self.methods])
        if paper:
            head += "".join(f"<th>paper: {name}</th>" for name in (BASELINE, "tmt"))
        rows = []
        for pair in self.pairs:
            means = {method: spread(values[method][pair])[0] for method in self.methods if pair in values[method]}
            cells = [f"<td>{cell_text(before.get(pair, []))}</td>"]
            for method in self.methods:
                best = len(means) > 1 and method in means and means[method] == max(means.values())
                gain = ""
                if method != BASELINE and method in means and BASELINE in means:
                    gain = f"<small>{means[method] - means[BASELINE]:+.1f}</small>"
                text = cell_text(values[method].get(pair, [])) or NOTHING
                cells.append(f"<td{' class=best' if best else ''}>{text}{gain}</td>")
            if paper:
                cells += [f"<td>{paper[pair][name] if pair in paper else ''}</td>" for name in (BASELINE, "tmt")]
            rows.append(f"<tr><th>{escape(pair[0])} → {escape(pair[1])}</th>{''.join(cells)}</tr>")
        total = [_mean_cell(before.values())]
        for method in self.methods:
            found = None if method == BASELINE else self._difference(method, metric, fraction)
            total.append(_mean_cell(values[method].values(), _interval(found)))
        if paper:
            total += [f"<td>{np.mean([row[name] for row in paper.values()]):.1f}</td>" for name in (BASELINE, "tmt")]
        rows.append(f'<tr class="total"><th>mean</th>{"".join(total)}</tr>')
        return (
            f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )

    def _differences(self) -> str:
        panes = []
        for fraction in self.fractions:
            rows = []
            for method in self.others:
                found = self._difference(method, fraction=fraction)
                if found is not None:
                    rows.append((method, found.mean, found.low, found.high, found.values))
            if rows:
                drawn = [row for row in rows if row[0] != "linear"] or rows  # its loss would set the scale
                chart = interval_chart(drawn, f"points of mIoU, minus {BASELINE}")
                items = "; ".join(
                    f"{escape(m)} {mean:+.2f}"
                    + (f" [{low:+.2f}, {high:+.2f}]" if low is not None else " (no interval)")
                    for m, mean, low, high, _ in rows
                )
                panes.append((_share(fraction), f'{chart}<p class="note">{items}</p>'))
        return _tabs("differences", panes)

    def _heat_maps(self) -> str:
        sources = sorted({pair[0] for pair in self.pairs})
        targets = sorted({pair[1] for pair in self.pairs})

        def table(values: Mapping[Pair, float], caption: str, diverging: bool = False) -> str:
            if not values:
                return ""
            corner = "source ↓  target →"
            drawn = heat_table(sources, targets, values, corner=corner, diverging=diverging, scale=LARGE_GAIN)
            return f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>"

        before = _means_by_pair(by_cell(self.results.evaluation, METRICS[0]))
        baseline = {
            pair: spread(v)[0] for pair, v in pair_values(self.results, BASELINE, self.fraction, METRICS[0]).items()
        }
        parts = [table(before, "before fine-tuning"), table(baseline, BASELINE)]
        for method in self.others:
            own = {
                pair: spread(v)[0] for pair, v in pair_values(self.results, method, self.fraction, METRICS[0]).items()
            }
            gains = {pair: own[pair] - baseline[pair] for pair in own if pair in baseline}
            parts.append(table(gains, f"{method} minus {BASELINE}", diverging=True))
        return f'<div class="row-flex">{"".join(parts)}</div>' if len(self.pairs) > 1 else ""

    # --- curves

    def _sweeps(self) -> str:
        parts = []
        for name in sorted({run.about["sweep"] for run in self.results.swept}):
            runs = [run for run in self.results.swept if run.about["sweep"] == name]
            key = runs[0].about["key"]
            points: _Points = {}
            methods = {run.method for run in runs}
            fixed = [run for run in self.results.fine_tuned if run.method in methods]
            for run in [*runs, *fixed]:
                if run.about["label_fraction"] == self.fraction:
                    value = run.about["value"] if "value" in run.about else setting(run, key)
                    points.setdefault(run.method, {}).setdefault(_hashable(value), {})[run.cell] = run.values[
                        METRICS[0]
                    ]
            order = sorted({value for each in points.values() for value in each})
            number = all(isinstance(value, (int, float)) for value in order)
            place = {value: float(value) if number else float(index) for index, value in enumerate(order)}
            chart = self._value_chart(points, place, name, None if number else [(place[v], str(v)) for v in order])
            if chart:
                parts.append(f"<figure><figcaption>{escape(key)}</figcaption>{chart}</figure>")
        return f'<div class="row-flex">{"".join(parts)}</div>' if parts else ""

    def _value_chart(
        self,
        points: _Points,
        place: Mapping[Any, float],
        x_label: str,
        x_ticks: Sequence[tuple[float, str]] | None,
    ) -> str:
        """Per method the mean over the (pair, seed) that have every value; spread over seeds of their mean over pairs."""
        series = []
        for method in sorted(points):
            complete = sorted(set.intersection(*(set(cells) for cells in points[method].values())))
            if not complete:
                continue
            found = []
            for value, cells in points[method].items():
                by_seed: dict[int, list[float]] = {}
                for cell in complete:
                    by_seed.setdefault(cell[1], []).append(cells[cell])
                found.append((place[value], *spread([float(np.mean(each)) for each in by_seed.values()])))
            found.sort()
            band = [(x, mean - deviation, mean + deviation) for x, mean, deviation in found if deviation is not None]
            series.append(Series(method, [(x, mean) for x, mean, _ in found], band))
        if not series:
            return ""
        drawn = line_chart(series, x_label, "mIoU", colours=self.colours, x_ticks=x_ticks)
        return legend([each.name for each in series], self.colours) + drawn

    def _label_curves(self) -> str:
        if len(self.fractions) < 2:
            return ""
        points: _Points = {}
        for run in self.results.fine_tuned:
            values = points.setdefault(run.method, {}).setdefault(run.about["label_fraction"], {})
            values[run.cell] = run.values[METRICS[0]]
        place = {fraction: float(np.log2(fraction)) for fraction in self.fractions}
        x_ticks = [(place[fraction], f"{fraction:.3g}") for fraction in self.fractions]
        return self._value_chart(points, place, "share of labels", x_ticks)

    def _curves(self) -> str:
        charts = []
        for pair in self.pairs:
            series = []
            for method in self.methods:
                runs = [run for run in self.results.of(method, self.fraction) if run.pair == pair]
                lines = [curve(run, "total_loss") for run in runs]
                if lines and all(lines):
                    length = min(map(len, lines))
                    mean = np.mean([[value for _, value in line[:length]] for line in lines], axis=0)
                    series.append(Series(method, [(lines[0][i][0], float(mean[i])) for i in range(length)]))
            if series:
                chart = line_chart(
                    series, "iteration", "loss", colours=self.colours, width=250, height=150, small=True, markers=False
                )
                charts.append(f"<figure><figcaption>{escape(' → '.join(pair))}</figcaption>{chart}</figure>")
        return legend(self.methods, self.colours) + f'<div class="row-flex">{"".join(charts)}</div>' if charts else ""

    # --- classes, estimators, scores

    def _classes(self) -> str:
        values = {}
        baseline = self.results.of(BASELINE, self.fraction)
        for method in self.others:
            for name in CLASSES:
                metric = f"IoU-{name}"
                found = paired_difference(
                    by_cell(self.results.of(method, self.fraction), metric), by_cell(baseline, metric)
                )
                if found is not None:
                    values[name, method] = found.mean
        columns = [method for method in self.others if any((name, method) in values for name in CLASSES)]
        for name in CLASSES:
            found_values = [run.values[f"IoU-{name}"] for run in baseline if run.values.get(f"IoU-{name}") is not None]
            if found_values and columns:
                values[name, f"IoU of {BASELINE}"] = float(np.mean(found_values))
        rows = [name for name in CLASSES if (name, f"IoU of {BASELINE}") in values]
        gains = {key: value for key, value in values.items() if key[1] in columns}
        if not gains:
            return ""
        plain = {key: value for key, value in values.items() if key[1] not in columns}
        return (
            f'<div class="row-flex">{heat_table(rows, columns, gains, diverging=True, scale=2 * LARGE_GAIN)}'
            f"{heat_table(rows, [f'IoU of {BASELINE}'], plain)}</div>"
        )

    def _estimators(self) -> str:
        runs = [run for run in self.results.estimator if not run.about.get("variant")]
        if not runs:
            return ""
        columns = [f"stride {stride}" for stride in STRIDES]

        def by_level(key: str) -> dict[tuple[str, str], float]:
            found: dict[tuple[str, str], list[float]] = {}
            for run in runs:
                for column, value in zip(columns, run.values[key]):
                    found.setdefault((" → ".join(run.pair), column), []).append(value)
            return {place: float(np.mean(values)) for place, values in found.items()}

        rows = [" → ".join(pair) for pair in self.pairs]
        parts = []
        for key, caption in (
            ("proxy_a_distance", "proxy A-distance"),
            ("std_of_t_within_image", "standard deviation of T within an image"),
            ("rank_stability", "rank stability: Spearman's correlation of two discriminators"),
        ):
            values = by_level(key)
            shown = [row for row in rows if any((row, column) in values for column in columns)]
            drawn = heat_table(shown, columns, values, digits=2)
            parts.append(f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>")
        by_class: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            for column, level in zip(columns, run.values["mean_t_by_class"]):
                for name, value in level.items():
                    by_class.setdefault((name, column), []).append(value)
        means = {place: float(np.mean(values)) for place, values in by_class.items()}
        names = [name for name in CLASSES if any((name, column) in means for column in columns)]
        drawn = heat_table(names, columns, means, digits=2)
        parts.append(f"<figure><figcaption>mean T by class, over all pairs</figcaption>{drawn}</figure>")
        return f'<div class="row-flex">{"".join(parts)}</div>'

    def _scores(self) -> str:
        reached = by_cell(self.results.of(BASELINE, self.fraction), METRICS[0])
        targets = sorted({pair[1] for pair in self.pairs})
        colours = {name: colour_of(index) for index, name in enumerate(targets)}
        parts, rows = [], []
        for score in SCORES:
            groups: dict[str, list[tuple[float, float, str]]] = {}
            for run in self.results.scores:
                if score in run.values and run.cell in reached:
                    tip = f"{run.pair[0]} → {run.pair[1]}, seed {run.about['seed']}"
                    groups.setdefault(run.pair[1], []).append((run.values[score], reached[run.cell], tip))
            points = [point for group in groups.values() for point in group]
            if len(points) < 2:
                continue
            sign = -1 if score == "PAD" else 1  # so that a useful score has a positive correlation
            overall = correlation([sign * point[0] for point in points], [point[1] for point in points])
            within = [correlation([sign * p[0] for p in group], [p[1] for p in group]) for group in groups.values()]
            within_tau = [found[0] for found in within if found is not None]
            rows.append(
                f"<tr><th>{score}{' (negated)' if sign < 0 else ''}</th><td>{_number(overall and overall[0])}</td>"
                f"<td>{_number(overall and overall[1])}</td>"
                f"<td>{_number(float(np.mean(within_tau)) if within_tau else None)}</td><td>{len(points)}</td></tr>"
            )
            parts.append(f"<figure>{scatter(groups, score, f'mIoU of {BASELINE}', colours)}</figure>")
        if not rows:
            return ""
        head = "<th>score</th><th>Kendall τ</th><th>Pearson r</th><th>mean τ within a target</th><th>points</th>"
        table = f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        return f'{legend(targets, colours)}<div class="row-flex">{"".join(parts)}</div><h3>Correlation</h3>{table}'

    # --- the rest

    def _examples(self, examples: Sequence[Example]) -> str:
        parts = []
        for example in examples:
            names = list(example.views)
            left = names.index(BASELINE) if BASELINE in names else 0
            right = names.index("tmt") if "tmt" in names else len(names) - 1
            selects = "".join(
                f'<select aria-label="{side}">'
                + "".join(
                    f'<option value="{index}"{" selected" if index == chosen else ""}>{escape(name)}</option>'
                    for index, name in enumerate(names)
                )
                + "</select>"
                for side, chosen in (("left", left), ("right", right))
            )
            data = json.dumps(list(example.views.values()))
            parts.append(
                f'<figure class="example"><figcaption>{escape(example.title)}</figcaption><div class="choose">{selects}</div>'
                f'<div class="compare"><img alt="right view"><img class="top" alt="left view"><i></i></div>'
                f'<input type="range" min="0" max="100" value="50" aria-label="boundary">'
                f'<script type="application/json">{data}</script></figure>'
            )
        return f'<div class="row-flex">{"".join(parts)}</div>' if parts else ""

    def _settings(self) -> str:
        rows = []
        for name, runs in (
            ("source model", self.results.source),
            ("estimator", self.results.estimator),
            *((f"fine-tuning: {method}", self.results.of(method, self.fraction)) for method in self.methods),
        ):
            if runs:
                rows.append(_setting_row(name, runs))
        if not rows:
            return ""
        head = "".join(
            f"<th>{text}</th>"
            for text in ("stage", "runs", "iterations", "batch", "learning rate", "backbone", "p_T", "seconds each")
        )
        return f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _setting_row(name: str, runs: Sequence[Run]) -> str:
    cfg = yaml.safe_load((runs[0].folder / "config.yaml").read_text())
    backbone = cfg["MODEL"]["BACKBONE"]["NAME"].replace("build_", "").replace("_backbone", "")
    if "resnet" in backbone:
        backbone = f"ResNet-{cfg['MODEL']['RESNETS']['DEPTH']}"
    p_t = f"{cfg['MODEL']['TMT']['P_T']:g}" if cfg["MODEL"]["META_ARCHITECTURE"].startswith("Transferable") else ""
    solver = cfg["SOLVER"]
    values = [len(runs), solver["MAX_ITER"], solver["IMS_PER_BATCH"], f"{solver['BASE_LR']:g}", backbone, p_t]
    values.append(f"{np.median([run.seconds for run in runs]):.0f}")
    return f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(str(value))}</td>' for value in values)}</tr>"


def _tabs(prefix: str, panes: Sequence[tuple[str, str]]) -> str:
    if len(panes) < 2:
        return "".join(content for _, content in panes)
    buttons = "".join(
        f'<button type="button" data-pane="{prefix}-{index}">{escape(label)}</button>'
        for index, (label, _) in enumerate(panes)
    )
    content = "".join(f'<div id="{prefix}-{index}">{pane}</div>' for index, (_, pane) in enumerate(panes))
    return f'<div class="tabs">{buttons}</div>{content}'


def _means_by_pair(values: Mapping[tuple[Pair, int], float]) -> dict[Pair, float]:
    found: dict[Pair, list[float]] = {}
    for (pair, _), value in values.items():
        found.setdefault(pair, []).append(value)
    return {pair: float(np.mean(each)) for pair, each in found.items()}


def _mean_cell(values: Any, below: str = "") -> str:
    found = [value for each in values for value in each]
    return f"<td>{f'{np.mean(found):.1f}' if found else NOTHING}{below}</td>"


def _interval(found: Difference | None) -> str:
    if found is None:
        return ""
    if found.low is None:
        return f"<small>{found.mean:+.1f}</small>"
    return f"<small>{_signed(found.mean, found.is_clear)}</small><small>[{found.low:+.1f}, {found.high:+.1f}]</small>"


def _signed(value: float, is_clear: bool = True) -> str:
    kind = "even" if not is_clear or abs(value) < 0.05 else "up" if value > 0 else "down"
    return f'<span class="{kind}">{value:+.1f}</span>'


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2f}"


def _share(fraction: float) -> str:
    return "all labels" if fraction == 1 else f"{fraction:.3g} of the labels"


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
