"""Sections with images: predictions of each method for the same image and T, and the images with the worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tmt_d2.adaptation import BASELINE, OURS
from tmt_d2.config import setup_cfg
from tmt_d2.data.datasets.label_spaces import IGNORE, LabelSpace
from tmt_d2.data.datasets.registration import labeled_records
from tmt_d2.data.reader import read_pair
from tmt_d2.engine.checkpoint.checkpointer import FINAL
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.experiments.results import Labels, Results, Run
from tmt_d2.experiments.statistics import rank_correlation
from tmt_d2.inference.predictor import Predictor
from tmt_d2.modeling.ops.resize import resize_level
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.projects.report.elements import Block, Example, Figures, Legend, Note, Section, Thumbnails
from tmt_d2.visualization.html import data_uri
from tmt_d2.visualization.overlays import TRANSFERABILITY_MAP, error_overlay, heat_overlay, label_overlay, wrong_pixels
from tmt_d2.visualization.sizes import resized

WIDTH = 512  # of the views of an example
THUMBNAIL_WIDTH = 256


def examples(results: Results, count: int, labels: Sequence[Labels]) -> Section:
    """The first ``count`` held-out images of the first pair and seed, by every method; runs the models.

    labels: the amount of labels that the page is about, or none.
    """
    runs = _first_cell(results, labels) if count else []
    blocks: list[Block] = []
    if runs:
        (source, target), seed = runs[0].cell
        start = [run for run in results.source if (run.about["source"], run.about["seed"]) == (source, seed)]
        names = setup_cfg(str(runs[0].folder / "config.yaml")).DATASETS.TEST
        views: dict[str, dict[str, str]] = {}
        for run in [*start, *runs]:
            predictor = _load(run)
            for record in labeled_records(names)[:count]:
                new = _views(predictor, record, run.method or "source model")
                views.setdefault(record["file_name"], {}).update({key: data_uri(view) for key, view in new.items()})
        methods = [run.method for run in runs]
        left, right = (name if name in methods else methods[place] for name, place in ((BASELINE, 0), (OURS, -1)))
        parts = [
            ("", Example(f"{source} → {target}, seed {seed}: {Path(file).name}", views[file], left, right))
            for file in views
        ]
        blocks = [Legend(legend_of(predictor.label_space_of(names[0]))), Figures(parts)]
    return Section("examples", "Examples", "Move the bar to compare two views of one image.", blocks)


def _first_cell(results: Results, labels: Sequence[Labels]) -> list[Run]:
    """The runs of the first pair and seed with this amount of labels, by method."""
    runs = [run for each in labels for method in results.methods() for run in results.of(method, each)]
    cell = min((run.cell for run in runs), default=None)
    return [run for run in runs if run.cell == cell]


def _load(run: Run) -> Predictor:
    opts = ["MODEL.TMT.OUTPUT_TRANSFERABILITY", "True"]  # also where T does not act
    # A source model that was only evaluated has no checkpoint of its own.
    weights = run.setting("MODEL.WEIGHTS") if "weights" in run.about else run.folder / f"{FINAL}.pth"
    return Predictor.from_config(str(run.folder / "config.yaml"), str(weights), opts)


def legend_of(space: LabelSpace) -> list[tuple[str, str]]:
    """Names and colors of the classes that occur."""
    named = enumerate(zip(space.classes.names, space.classes.colors))
    return [(name, f"rgb{tuple(map(int, color))}") for index, (name, color) in named if index not in space.never_occurs]


@torch.no_grad()
def _views(predictor: Predictor, record: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    """The image, its label, and the predictions of the model called ``name``, WIDTH wide."""
    whole, truth = read_pair(record, predictor.label_space_of(record["dataset"]))
    classes = predictor.classes
    height, width = whole.shape[:2]
    image = _at_width(whole, WIDTH)
    item = predictor.model_input(whole)
    result = predictor.model([item])[0]
    prediction = labels_at_size(result["sem_seg"], (height, width)).cpu().numpy()
    views = {
        "image": image,
        "label": label_overlay(image, truth, classes, 0.75),
        name: label_overlay(image, prediction, classes, 0.75),
        f"{name}: errors": error_overlay(image, prediction, truth),
    }
    if "transferability" in result:
        t = result["transferability"][-1][None].float()
        t = resize_level(t, STRIDES[-1], item["image"].shape[-2:], image.shape[:2])[0].cpu().numpy()
        views[f"{name}: T (stride 8)"] = heat_overlay(image, t, TRANSFERABILITY_MAP)
    return views


def _at_width(image: np.ndarray, width: int) -> np.ndarray:
    """Resize an image, of however few rows, to a width in pixels."""
    return resized(image, (max(1, round(image.shape[0] * width / image.shape[1])), width))


class ImageError(NamedTuple):
    """error: share of wrong pixels. t: mean T of the finest level, None without. doubts: as ``doubts_of``. image: data
    URI of a thumbnail."""

    file_name: str
    error: float
    t: float | None
    doubts: Mapping[str, float]
    image: str


def worst_images(results: Results, count: int, labels: Sequence[Labels]) -> Section:
    """The ``count`` held-out images of the first pair and seed with the largest error, and those with the highest mean
    T, by TMT or else the last method; runs one model over the whole split."""
    runs = _first_cell(results, labels) if count else []
    blocks: list[Block] = []
    if runs:
        run = next((run for run in runs if run.method == OURS), runs[-1])
        predictor = _load(run)
        records = labeled_records(setup_cfg(str(run.folder / "config.yaml")).DATASETS.TEST)
        errors = [_image_error(predictor, record) for record in tqdm(records, desc="worst images", unit="image")]
        blocks = worst_blocks(run.method, errors, count)
    lead = "Held-out images of one pair and seed, with the wrong pixels in red below each."
    return Section("worst", "Worst images", lead, blocks)


def worst_blocks(method: str, errors: Sequence[ImageError], count: int) -> list[Block]:
    blocks: list[Block] = []
    correlations = rank_correlations(errors)
    if correlations:
        values = ", ".join(f"{name} {value:+.2f}" for name, value in correlations.items())
        text = f"Spearman's correlation with the share of wrong pixels over all {len(errors)} images: {values}."
        blocks.append(Note(f"{text} At +1 a measure ranks the images by their error."))
    with_t = [each for each in errors if each.t is not None]
    sheets = {
        "largest error": nlargest(count, errors, key=lambda each: each.error),
        "highest mean T": nlargest(count, with_t, key=lambda each: each.t or 0.0),
    }
    for name, sheet in sheets.items():
        images = []
        for each in sheet:
            t = "" if each.t is None else f", mean T {each.t:.3f}"
            images.append((f"{100 * each.error:.1f} % wrong{t}", each.file_name, each.image))
        blocks += [Thumbnails(f"{method}, {name}", images)] if images else []
    return blocks


def rank_correlations(errors: Sequence[ImageError]) -> dict[str, float]:
    """Spearman's correlation of each doubt with the error over images, without those that rank nothing."""
    shares = [each.error for each in errors]
    names = errors[0].doubts if errors else ()
    values = {name: rank_correlation([each.doubts[name] for each in errors], shares) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def doubts_of(scores: Tensor, t: float | None) -> dict[str, float]:
    """Means over the image of the scores by which label selection ranks images; the higher, the more doubtful.

    scores: (K, H, W), not normalized. t: mean T.
    """
    probabilities = scores.float() / scores.float().sum(0).clamp(min=1e-6)
    best = probabilities.topk(2, dim=0).values
    doubts = {
        "high entropy": float(torch.special.entr(probabilities).sum(0).mean()),
        "small margin": -float((best[0] - best[1]).mean()),
    }
    return doubts if t is None else {**doubts, "low T": -t}


@torch.no_grad()
def _image_error(predictor: Predictor, record: dict[str, Any]) -> ImageError:
    whole, truth = read_pair(record, predictor.label_space_of(record["dataset"]))
    result = predictor.model([predictor.model_input(whole)])[0]
    prediction = labels_at_size(result["sem_seg"], truth.shape).cpu().numpy()
    error = float(wrong_pixels(prediction, truth).sum()) / max(int((truth != IGNORE).sum()), 1)
    t = float(result["transferability"][-1].mean()) if "transferability" in result else None
    image = _at_width(whole, THUMBNAIL_WIDTH)
    both = np.vstack([image, error_overlay(image, prediction, truth)])
    doubts = doubts_of(result["sem_seg"], t)
    return ImageError(Path(record["file_name"]).name, error, t, doubts, data_uri(both, 75))
