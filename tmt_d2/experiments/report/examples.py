"""Example images: what each method predicts for the same picture, and T, as JPEG data addresses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tmt_d2.config import setup_cfg
from tmt_d2.data.reader import read_pair
from tmt_d2.data.registration import labelled_records
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.experiments.records import Labels
from tmt_d2.experiments.report.results import Results
from tmt_d2.pictures.html import data_uri
from tmt_d2.pictures.overlays import TRANSFERABILITY_MAP, error_overlay, heat_overlay, label_overlay
from tmt_d2.pictures.reporting import LoadedModel, label_space_for
from tmt_d2.pictures.sizes import resized
from tmt_d2.training.checkpoint import FINAL

WIDTH = 512


class Example(NamedTuple):
    """title of a picture, and its views by name: data addresses."""

    title: str
    views: Mapping[str, str]


def examples(results: Results, images: int, labels: Labels) -> list[Example]:
    """The first ``images`` held-out pictures of the first pair and seed, by every method; runs the models."""
    if not images or not results.fine_tuned:
        return []
    pair, seed = results.fine_tuned[0].pair, results.fine_tuned[0].about["seed"]
    runs = [run for method in results.methods() for run in results.of(method, labels) if run.cell == (pair, seed)]
    source = [run for run in results.source if (run.about["source"], run.about["seed"]) == (pair[0], seed)]
    names = setup_cfg(str(runs[0].folder / "config.yaml")).DATASETS.TEST
    views: dict[str, dict[str, str]] = {}
    for run in [*source, *runs]:
        loaded = LoadedModel.load(str(run.folder / "config.yaml"), str(run.folder / f"{FINAL}.pth"))
        for record in labelled_records(names)[:images]:
            new = _views(loaded, record, run.method or "source model")
            views.setdefault(record["file_name"], {}).update({key: data_uri(view) for key, view in new.items()})
    return [Example(f"{pair[0]} → {pair[1]}, seed {seed}: {Path(file).name}", views[file]) for file in views]


@torch.no_grad()
def _views(loaded: LoadedModel, record: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    """The picture, its truth, and what the model of that name makes of it, WIDTH wide."""
    whole, truth = read_pair(record, label_space_for(loaded.model, record["dataset"]))
    classes = loaded.model.class_list
    height, width = whole.shape[:2]
    picture = resized(whole, (round(height * WIDTH / width), WIDTH))
    result = loaded.model([loaded.mapper(record)])[0]
    prediction = labels_at_size(result["sem_seg"], (height, width)).cpu().numpy()
    views = {
        "picture": picture,
        "truth": label_overlay(picture, truth, classes, 0.75),
        name: label_overlay(picture, prediction, classes, 0.75),
        f"{name}: errors": error_overlay(picture, prediction, truth),
    }
    if "transferability" in result:
        t = resized(result["transferability"][-1].cpu().numpy(), picture.shape[:2])
        views[f"{name}: T (stride 8)"] = heat_overlay(picture, t, TRANSFERABILITY_MAP)
    return views
