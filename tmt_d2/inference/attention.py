"""Attention and transferability of a trained model: a report of one image, and statistics of a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tmt_d2.config import setup_cfg
from tmt_d2.data.datasets.registration import check_registered, labeled_records
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.reader import read_label, read_pair
from tmt_d2.inference.images import InputImage
from tmt_d2.inference.predictor import Predictor
from tmt_d2.utils.files import read_json
from tmt_d2.visualization.exclusion import collect
from tmt_d2.visualization.inspection import AttentionReport, Selector, attention_report
from tmt_d2.visualization.sizes import Size, resized, size_within


def report_image(
    predictor: Predictor,
    image: InputImage,
    selectors: Sequence[Selector],
    top: int = 0,
    layers: Sequence[int] | None = None,
) -> AttentionReport:
    """Report one image, with errors if its record has a label, at the size of the file or smaller.

    Args:
        selectors, top, layers: as in ``attention_report``; pixels are those of the file.
    """
    record, truth = image.record, None
    if LABEL in record:
        truth = read_label(record[LABEL], predictor.label_space_of(record["dataset"]))
    pixels = image.read("RGB")
    whole: Size = (pixels.shape[0], pixels.shape[1])
    size = size_within(whole)
    return attention_report(
        predictor.model,
        predictor.model_input(pixels),
        resized(pixels, size),
        selectors=[scaled(selector, whole, size) for selector in selectors],
        top=top,
        layers=layers,
        truth=None if truth is None else resized(truth, size),
        name=predictor.name,
    )


def scaled(selector: Selector, whole: Size, shown: Size) -> Selector:
    """Convert a pixel (x, y) of an image of size ``whole`` to one of size ``shown``; other selectors stay."""
    if not isinstance(selector, tuple):
        return selector
    return selector[0] * shown[1] // whole[1], selector[1] * shown[0] // whole[0]


def split_statistics(predictor: Predictor, split: str, limit: int | None = None) -> dict[str, Any]:
    """Return ``ExclusionStatistics.result`` of a split, with the weights and the estimator's proxy A-distance."""
    check_registered(split, "--statistics")
    label_space = predictor.label_space_of(split)
    records = tqdm(labeled_records([split])[:limit], desc=split, unit="image")
    pairs = (read_pair(record, label_space) for record in records)
    items = ((predictor.model_input(image), truth) for image, truth in pairs)
    weights = predictor.cfg.MODEL.WEIGHTS
    result = {"split": split, "weights": weights} | collect(predictor.model, items)
    folder = Path(weights).parent
    folders = [folder]
    if (folder / "config.yaml").is_file():  # a fine-tuned model: its config names the estimator
        folders.append(Path(setup_cfg(str(folder / "config.yaml")).MODEL.WEIGHTS).parent)
    for estimator in (each / "estimator.json" for each in folders):
        if estimator.is_file():
            result["proxy_a_distance"] = read_json(estimator, ["proxy_a_distance"])["proxy_a_distance"]
            break
    return result
