"""Example images: what each method predicts for the same picture, and T, as JPEG data addresses."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tmt_d2.adaptation.methods import OURS
from tmt_d2.config import setup_cfg
from tmt_d2.data.datasets.label_spaces import IGNORE, LabelSpace
from tmt_d2.data.datasets.registration import labeled_records
from tmt_d2.data.maps import STRIDES
from tmt_d2.data.reader import read_pair
from tmt_d2.engine.checkpoint.checkpointer import FINAL
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.experiments.records import Labels
from tmt_d2.experiments.results import Results
from tmt_d2.experiments.statistics import rank_correlation
from tmt_d2.inference.reporting import LoadedModel, label_space_for
from tmt_d2.modeling.ops.resize import resize_level
from tmt_d2.visualization.html import data_uri
from tmt_d2.visualization.overlays import TRANSFERABILITY_MAP, error_overlay, heat_overlay, label_overlay, wrong_pixels
from tmt_d2.visualization.sizes import resized

WIDTH = 512


SHEET_WIDTH = 256


class Example(NamedTuple):
    """title of a picture, and its views by name: data addresses."""

    title: str
    views: Mapping[str, str]
    keys: Sequence[tuple[str, str]] = ()


class Thumbnail(NamedTuple):
    """error: share of wrong pixels; t: mean T of the finest level, None without; picture: a data address."""

    file_name: str
    error: float
    t: float | None
    picture: str


class Worst(NamedTuple):
    """sheets: by name. told: how well a score ranks all the pictures by their error, Spearman's correlation with it, by
    what should mean an error; pictures: how many these are."""

    sheets: Mapping[str, Sequence[Thumbnail]] = {}
    told: Mapping[str, float] = {}
    pictures: int = 0


def examples(results: Results, images: int, labels: Labels) -> list[Example]:
    """The first ``images`` held-out pictures of the first pair and seed, by every method; runs the models."""
    if not images or not results.fine_tuned:
        return []
    first = next((run for run in results.fine_tuned if run.labels == labels), None)
    if first is None:
        return []
    pair, seed = first.cell
    runs = [run for method in results.methods() for run in results.of(method, labels) if run.cell == (pair, seed)]
    source = [run for run in results.source if (run.about["source"], run.about["seed"]) == (pair[0], seed)]
    names = setup_cfg(str(runs[0].folder / "config.yaml")).DATASETS.TEST
    views: dict[str, dict[str, str]] = {}
    for run in [*source, *runs]:
        loaded = LoadedModel.load(str(run.folder / "config.yaml"), str(run.folder / f"{FINAL}.pth"))
        for record in labeled_records(names)[:images]:
            new = _views(loaded, record, run.method or "source model")
            views.setdefault(record["file_name"], {}).update({key: data_uri(view) for key, view in new.items()})
    keys = legend_of(label_space_for(loaded.model, names[0]))
    return [Example(f"{pair[0]} → {pair[1]}, seed {seed}: {Path(file).name}", views[file], keys) for file in views]


def legend_of(space: LabelSpace) -> list[tuple[str, str]]:
    """Names and colours of the classes that occur."""
    named = enumerate(zip(space.classes.names, space.classes.colors))
    return [
        (name, f"rgb{tuple(map(int, colour))}") for index, (name, colour) in named if index not in space.never_occurs
    ]


@torch.no_grad()
def worst(results: Results, count: int, labels: Labels) -> Worst:
    """The ``count`` held-out pictures of the first pair and seed with the largest error, and those with the highest
    mean T, by the method that is ours, or else the last, and what tells an error; runs one model over the whole split.
    """
    if not count or not results.fine_tuned:
        return Worst()
    here = [run for run in results.fine_tuned if run.labels == labels]
    if not here:
        return Worst()
    of_cell = {run.method: run for run in here if run.cell == here[0].cell}
    method = OURS if OURS in of_cell else [name for name in results.methods() if name in of_cell][-1]
    runs = [of_cell[method]]
    cfg = setup_cfg(str(runs[0].folder / "config.yaml"))
    loaded = LoadedModel.load(str(runs[0].folder / "config.yaml"), str(runs[0].folder / f"{FINAL}.pth"))
    sheets: dict[str, list[Thumbnail]] = {"largest error": [], "highest mean T": []}
    measured: list[tuple[float, Mapping[str, float]]] = []
    for record in tqdm(labeled_records(cfg.DATASETS.TEST), desc="worst pictures", unit="picture"):
        thumbnail, doubts = _thumbnail(loaded, record)
        measured.append((thumbnail.error, doubts))
        sheets["largest error"].append(thumbnail)
        sheets["largest error"] = heapq.nlargest(count, sheets["largest error"], key=lambda each: each.error)
        if thumbnail.t is not None:
            sheets["highest mean T"].append(thumbnail)
            sheets["highest mean T"] = heapq.nlargest(count, sheets["highest mean T"], key=lambda each: each.t or 0.0)
    return Worst({f"{method}, {name}": sheet for name, sheet in sheets.items() if sheet}, told(measured), len(measured))


def told(measured: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Spearman's correlation of each doubt with the error, over pictures; without those where nothing is ranked.

    measured: of each picture the error, and doubts by name: the higher, the more likely an error.
    """
    errors = [error for error, _ in measured]
    names = measured[0][1] if measured else ()
    found = {name: rank_correlation([doubts[name] for _, doubts in measured], errors) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def doubts_of(scores: Tensor, t: float | None) -> dict[str, float]:
    """Those by which pictures are proposed for labelling (see ``selection.pool``), means over the picture.

    scores: (K, H, W), not normalised. t: mean T.
    """
    probabilities = scores.float() / scores.float().sum(0).clamp(min=1e-6)
    best = probabilities.topk(2, dim=0).values
    doubts = {
        "high entropy": float(torch.special.entr(probabilities).sum(0).mean()),
        "small margin": -float((best[0] - best[1]).mean()),
    }
    return doubts if t is None else {**doubts, "low T": -t}


def _thumbnail(loaded: LoadedModel, record: dict[str, Any]) -> tuple[Thumbnail, dict[str, float]]:
    """Errors in red over the picture, half of it, and the picture; and what the model's doubts about it are."""
    whole, truth = read_pair(record, label_space_for(loaded.model, record["dataset"]))
    result = loaded.model([loaded.mapper(record)])[0]
    prediction = labels_at_size(result["sem_seg"], truth.shape).cpu().numpy()
    labelled = int((truth != IGNORE).sum())
    t = float(result["transferability"][-1].mean()) if "transferability" in result else None
    picture = resized(whole, (round(whole.shape[0] * SHEET_WIDTH / whole.shape[1]), SHEET_WIDTH))
    both = np.vstack([picture, error_overlay(picture, prediction, truth)])
    error = float(wrong_pixels(prediction, truth).sum()) / max(labelled, 1)
    thumbnail = Thumbnail(Path(record["file_name"]).name, error, t, data_uri(both, 75))
    return thumbnail, doubts_of(result["sem_seg"], t)


@torch.no_grad()
def _views(loaded: LoadedModel, record: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    """The picture, its truth, and what the model of that name makes of it, WIDTH wide."""
    whole, truth = read_pair(record, label_space_for(loaded.model, record["dataset"]))
    classes = loaded.model.class_list
    height, width = whole.shape[:2]
    picture = resized(whole, (round(height * WIDTH / width), WIDTH))
    item = loaded.mapper(record)
    result = loaded.model([item])[0]
    prediction = labels_at_size(result["sem_seg"], (height, width)).cpu().numpy()
    views = {
        "picture": picture,
        "truth": label_overlay(picture, truth, classes, 0.75),
        name: label_overlay(picture, prediction, classes, 0.75),
        f"{name}: errors": error_overlay(picture, prediction, truth),
    }
    if "transferability" in result:
        t = result["transferability"][-1][None].float()
        t = resize_level(t, STRIDES[-1], item["image"].shape[-2:], picture.shape[:2])[0].cpu().numpy()
        views[f"{name}: T (stride 8)"] = heat_overlay(picture, t, TRANSFERABILITY_MAP)
    return views
