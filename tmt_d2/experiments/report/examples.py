"""Example images: what each method predicts for the same picture, and T, as JPEG data addresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import get_detection_dataset_dicts

from tmt_d2.config import setup_cfg
from tmt_d2.data.reader import read_image
from tmt_d2.data.registration import read_record_label
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.experiments.report.results import Results, Run
from tmt_d2.pictures.html import data_uri
from tmt_d2.pictures.overlays import TRANSFERABILITY_MAP, error_overlay, heat_overlay, label_overlay
from tmt_d2.pictures.reporting import LoadedModel
from tmt_d2.pictures.sizes import resized
from tmt_d2.training.checkpoint import FINAL

WIDTH = 512


class Example(NamedTuple):
    """title of a picture, and its views by name: data addresses."""

    title: str
    views: Mapping[str, str]


class Answer(NamedTuple):
    """One image and what a model makes of it, WIDTH wide. t: (H, W), at stride 8; None for plain Mask2Former."""

    file_name: str
    picture: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    t: np.ndarray | None


def examples(results: Results, images: int, fraction: float) -> list[Example]:
    """The first ``images`` held-out pictures of the first pair and seed, by every method; runs the models."""
    if not images or not results.fine_tuned:
        return []
    pair, seed = results.fine_tuned[0].pair, results.fine_tuned[0].about["seed"]
    runs = [run for method in results.methods() for run in results.of(method, fraction) if run.cell == (pair, seed)]
    source = [run for run in results.source if (run.about["source"], run.about["seed"]) == (pair[0], seed)]
    titles: list[str] = []
    views: list[dict[str, np.ndarray]] = []
    for run in [*source, *runs]:
        name = run.method or "source model"
        for number, answer in enumerate(_answers(run, runs[0], images)):
            picture = answer.picture
            if number == len(views):
                titles.append(f"{pair[0]} → {pair[1]}, seed {seed}: {Path(answer.file_name).name}")
                views.append({"picture": picture, "truth": label_overlay(picture, answer.truth, 0.75)})
            views[number][name] = label_overlay(picture, answer.prediction, 0.75)
            views[number][f"{name}: errors"] = error_overlay(picture, answer.prediction, answer.truth)
            if answer.t is not None:
                views[number][f"{name}: T (stride 8)"] = heat_overlay(picture, answer.t, TRANSFERABILITY_MAP)
    return [Example(title, {key: data_uri(view) for key, view in each.items()}) for title, each in zip(titles, views)]


@torch.no_grad()
def _answers(run: Run, target: Run, images: int) -> Iterator[Answer]:
    loaded = LoadedModel.load(str(run.folder / "config.yaml"), str(run.folder / f"{FINAL}.pth"))
    names = setup_cfg(str(target.folder / "config.yaml")).DATASETS.TEST
    for record in get_detection_dataset_dicts(list(names), filter_empty=False)[:images]:
        picture = read_image(record["file_name"], "RGB")
        height, width = picture.shape[:2]
        size = (round(height * WIDTH / width), WIDTH)
        result = loaded.model([loaded.mapper(record)])[0]
        prediction = labels_at_size(result["sem_seg"], (height, width)).cpu().numpy()
        yield Answer(
            record["file_name"],
            resized(picture, size),
            resized(read_record_label(record), size),
            resized(prediction, size),
            resized(result["transferability"][-1].cpu().numpy(), size) if "transferability" in result else None,
        )
