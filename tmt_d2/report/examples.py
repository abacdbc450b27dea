"""Example images: what each method predicts for the same picture, and T, as JPEG data addresses."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling import build_model

from ..config import setup_cfg
from ..data import register_custom
from ..data.mapper import SemanticMapper
from ..data.reader import read_pair
from ..data.registration import label_space_of
from ..engine.checkpoint import FINAL, TMTCheckpointer
from ..evaluation.semantic import labels_at_size
from ..visualization.overlays import TRANSFERABILITY_MAP, error_overlay, heat_overlay, label_overlay, resized
from .results import Results, Run

WIDTH = 512


class Example(NamedTuple):
    """title of a picture, and its views by name: data addresses."""

    title: str
    views: Mapping[str, str]


def examples(results: Results, images: int, fraction: float) -> list[Example]:
    """The first ``images`` held-out pictures of the first pair and seed, by every method; runs the models."""
    if not images or not results.fine_tuned:
        return []
    pair, seed = results.fine_tuned[0].pair, results.fine_tuned[0].about["seed"]
    runs = [run for method in results.methods() for run in results.of(method, fraction) if run.cell == (pair, seed)]
    source = [run for run in results.source if (run.about["source"], run.about["seed"]) == (pair[0], seed)]
    views: list[dict[str, np.ndarray]] = []
    names: list[str] = []
    for index, run in enumerate([*source, *runs]):
        name = "source model" if index < len(source) else run.method
        for number, (file_name, picture, truth, prediction, t_map) in enumerate(_looks(run, runs[0], images)):
            if number == len(views):
                views.append({"picture": picture, "truth": label_overlay(picture, truth, 0.75)})
                names.append(file_name.rsplit("/", 1)[-1])
            views[number][name] = label_overlay(picture, prediction, 0.75)
            views[number][f"{name}: errors"] = error_overlay(picture, prediction, truth)
            if t_map is not None:
                views[number][f"{name}: T (stride 8)"] = heat_overlay(picture, t_map, TRANSFERABILITY_MAP)
    titles = [f"{pair[0]} → {pair[1]}, seed {seed}: {name}" for name in names]
    return [
        Example(title, {key: _data_address(value) for key, value in view.items()}) for title, view in zip(titles, views)
    ]


@torch.no_grad()
def _looks(run: Run, target: Run, images: int) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray, Any]]:
    cfg = setup_cfg(str(run.folder / "config.yaml"), ["MODEL.WEIGHTS", str(run.folder / f"{FINAL}.pth")])
    if not torch.cuda.is_available():
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.META_ARCHITECTURE == "TransferableMaskFormer":
        cfg.defrost()
        cfg.MODEL.TMT.OUTPUT_TRANSFERABILITY = True
    for path in cfg.DATASETS.CUSTOM:
        register_custom(path)
    model = build_model(cfg).eval()
    TMTCheckpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    names = setup_cfg(str(target.folder / "config.yaml")).DATASETS.TEST
    mapper = SemanticMapper(cfg, is_train=False)
    found = []
    for record in get_detection_dataset_dicts(list(names), filter_empty=False)[:images]:
        picture, truth = read_pair(record, label_space_of(record["dataset"]))
        result = model([mapper(record)])[0]
        prediction = labels_at_size(result["sem_seg"], picture.shape[:2]).cpu().numpy()
        size = (round(picture.shape[0] * WIDTH / picture.shape[1]), WIDTH)
        t_map = None
        if "transferability" in result:
            t_map = cv2.resize(result["transferability"][-1].cpu().numpy(), size[::-1], interpolation=cv2.INTER_NEAREST)
        found.append(
            (record["file_name"], resized(picture, size), resized(truth, size), resized(prediction, size), t_map)
        )
    return found


def _data_address(picture: np.ndarray) -> str:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
