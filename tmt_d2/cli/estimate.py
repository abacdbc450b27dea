"""Estimate how accurate trained models are on images without labels, and which of them to take.

    python tools/estimate.py --config-file output/R50/estimator/config.yaml \\
        --weights output/R50/estimator/model_final.pth --source cityscapes_sem_seg_val --input photos --output estimated

No label of --input is read. The estimate comes from the model's confidence, calibrated on labeled images of the source
that were not trained on (--source), and from transferability if the model has domain discriminators, which --method
estimator trains on source and target images. A model that was trained on target images (its TRANSFER.METHOD is a
fine-tuning) is judged by its confidence alone. Without --source there is no number; several --weights are ranked.

Files in --output, for several --weights in a folder each:

    estimate.json      mIoU with an interval, IoU of every class, and warnings
    images.csv         estimated accuracy, confidence and T of every image, the least accurate first
    worst.png          the images with the lowest estimated accuracy, with their predictions
    calibration.json   temperature of every class, for tools/predict.py --calibration
    pool/              sums over the pixels of every image; the same command again reuses them

--input is a folder (searched with its subfolders), a text file with one path a line, a registered split, a video, or an
image. Exit status: 0; 1 some images are unreadable; 2 an error, in one line.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from tabulate import tabulate

from tmt_d2.cli.common import (
    add_config_arguments,
    check_config,
    check_file,
    check_output_folder,
    check_place,
    parse,
    run,
)
from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write, remove_temporaries, write_json

if TYPE_CHECKING:
    from tmt_d2.estimation.collect import Collector
    from tmt_d2.estimation.estimate import Estimation
    from tmt_d2.inference.images import InputImages
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.inference.statistics import ImageStatistics

CALIBRATION = "calibration.json"
FEW_IMAGES = 30
WORST, COLUMNS = 12, 4  # images in worst.png


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add_config_arguments(arguments)
    add("--weights", nargs="+", default=[""], metavar="FILE", help="checkpoints of one config; default: MODEL.WEIGHTS")
    add("--input", required=True, metavar="PLACE", help="a folder, a list, a registered split, a video, or an image")
    add("--source", default="", metavar="SPLIT", help="registered split with labels that no model was trained on")
    add("--compare", action="store_true", help="compare all estimators with the labels of --input, a registered split")
    add("--output", required=True, type=Path, metavar="FOLDER", help="created if it does not exist")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(parser(), arguments)
    check_output_folder(args.output, args.input, "--input")
    check_place("--input", args.input)
    for weights in args.weights:
        check_file("--weights", weights)
    names = folder_names(args.weights)
    check_config(args.config_file, args.opts, args.method)
    from tmt_d2.config import setup_cfg
    from tmt_d2.data import register_data
    from tmt_d2.data.datasets.registration import check_registered, labeled_records
    from tmt_d2.inference.images import find_images
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.utils.lock import folder_lock
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    cfg = setup_cfg(args.config_file, args.opts, args.method)
    register_data(cfg, missing_ok=True)  # --input may be a split of custom data
    images = find_images(args.input)
    if args.source:
        check_registered(args.source, "--source")
        labeled_records([args.source])
    if args.compare:
        if not args.source:
            raise UserError("it needs --source", key="--compare")
        check_registered(args.input, "--input")
        labeled_records([args.input])
    rows: list[dict[str, Any]] = []
    broken = False
    with ExitStack() as stack:
        for weights, name in zip(args.weights, names):
            predictor = Predictor.from_config(args.config_file, weights, args.opts, args.method)
            for split in (args.source, args.input if args.compare else ""):
                if split:
                    predictor.label_space_of(split)
            if not rows:  # nothing is written before a model is loaded
                stack.enter_context(folder_lock(args.output, "--output"))
            folder = args.output / name
            folder.mkdir(exist_ok=True)
            remove_temporaries(folder)
            row, failed = estimate_model(predictor, images, args.source, folder)
            rows.append({"model": name or Path(predictor.cfg.MODEL.WEIGHTS).name, **row})
            broken = broken or failed
            if args.compare:
                print(tabulate(compare_splits(predictor, args.source, args.input), headers="keys", floatfmt=".3g"))
    order = "estimated mIoU" if args.source else "InfoMax"
    print(tabulate(sorted(rows, key=lambda row: -row[order]), headers="keys", floatfmt=".3g"))
    if not args.source:
        print("no estimate without --source: InfoMax only ranks models, higher is better")
    print(f"written: {args.output}")
    return 1 if broken else 0


def folder_names(weights: Sequence[str]) -> list[str]:
    """Return a folder for each checkpoint, of as many of its last names as distinguish all; "" for a single one.

    Raises:
        UserError: two are the same.
    """
    if len(weights) == 1:
        return [""]
    paths = [Path(each) for each in weights]
    for count in range(2, 3 + max(len(path.parts) for path in paths)):
        names = ["-".join([*path.parent.parts, path.stem][-count:]).replace("/", "") for path in paths]
        if len({*names}) == len(names):
            return names
    raise UserError("two are the same", key="--weights", value=" ".join(weights))


def estimate_model(predictor: Predictor, images: InputImages, source: str, folder: Path) -> tuple[dict[str, Any], bool]:
    """Write the files of one model.

    Returns:
        a row of the table, and True if some images could not be read.
    """
    from tmt_d2.adaptation import task_of
    from tmt_d2.data.datasets.registration import labeled_records
    from tmt_d2.data.labeled import LABEL
    from tmt_d2.estimation.collect import Collector, spread
    from tmt_d2.estimation.estimate import Estimation, info_max
    from tmt_d2.estimation.estimators import VERSION
    from tmt_d2.inference.statistics import claim_pool, state_of, statistics_of, testing_identity

    cfg, pool = predictor.cfg, folder / "pool"
    collect = Collector(cfg, predictor.model)
    records = spread(labeled_records([source])) if source else []
    identity = {
        **testing_identity(cfg),
        "--source": source,
        "files of --source": state_of(str(each[key]) for each in records for key in ("file_name", LABEL)),
        "version of the estimators": VERSION,
    }
    claim_pool(images, pool, identity)  # before minutes of work
    estimation = None
    if source:
        sample = collect.of_records(records, progress=source)
        estimation = Estimation(sample, predictor.classes.names, adapted=task_of(cfg).fine_tunes)
    statistics = statistics_of(images, pool, identity, Measurement(collect, estimation))
    for name, reason in statistics.broken.items():
        print(f"left out: {name}: {reason}")
    row: dict[str, Any] = {"InfoMax": info_max(statistics.arrays["mean_probability"], statistics.arrays["entropy"])}
    if estimation is not None:
        row = write_estimate(folder, estimation, statistics) | row
        write_worst(folder / "worst.png", predictor, images, statistics, estimation)
    return row, bool(statistics.broken)


def compare_splits(predictor: Predictor, source: str, target: str) -> list[dict[str, Any]]:
    """Return the table of ``compare`` for two registered splits."""
    from tmt_d2.data.datasets.registration import labeled_records
    from tmt_d2.estimation.collect import Collector, spread
    from tmt_d2.estimation.compare import compare

    collect = Collector(predictor.cfg, predictor.model)
    fitted_on, compared = (collect.of_records(spread(labeled_records([split]))) for split in (source, target))
    return compare(fitted_on, compared, predictor.classes.names)


class Measurement:
    """Sums over the pixels of images, as ``statistics_of`` keeps them."""

    def __init__(self, collect: Collector, estimation: Estimation | None) -> None:
        self.collect, self.estimation = collect, estimation

    def __call__(self, pixels: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        from tmt_d2.estimation.sample import PixelSample

        sample = PixelSample.concatenate([self.collect(each) for each in pixels])
        p = sample.probabilities
        levels = torch.full((len(p), 1), float("nan")) if sample.domain is None else sample.domain.mean(1)
        confusions = np.zeros((len(p), 0)) if self.estimation is None else self.estimation(sample).confusions
        return {
            "confusions": np.asarray(confusions, np.float32),
            "confidence": p.amax(-1).mean(1).numpy(),
            "entropy": torch.special.entr(p).sum(-1).mean(1).numpy(),
            "mean_probability": p.mean(1).numpy(),
            "domain": levels.numpy(),
        }


def write_estimate(folder: Path, estimation: Estimation, statistics: ImageStatistics) -> dict[str, Any]:
    """Write estimate.json, images.csv and calibration.json; return a row of the table."""
    from tmt_d2.estimation.estimators import Confidence, encode

    estimate = estimation.of(statistics.arrays["confusions"])
    metrics, interval = estimate.metrics(), estimate.interval("mIoU")
    reasons = warnings(estimation, statistics)
    result = {
        "estimator": estimation.estimator.name,
        "images": len(estimate),
        "mIoU": metrics["mIoU"],
        "interval": list(interval),
        "metrics": {name: value for name, value in metrics.items() if np.isfinite(value)},
        "source mIoU": estimation.source["mIoU"],
        "warnings": reasons,
    }
    write_json(folder / "estimate.json", result)
    if isinstance(estimation.estimator, Confidence):
        write_json(folder / CALIBRATION, encode(estimation.estimator, estimation.classes))
    with atomic_write(folder / "images.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(["image", "file", "estimated accuracy", "confidence", "transferability"])
        transferability = 1 / (1 + np.exp(statistics.arrays["domain"].mean(1)))  # NaN without an estimator
        for index in np.argsort(estimate.accuracy, kind="stable"):
            values = estimate.accuracy[index], statistics.arrays["confidence"][index], transferability[index]
            table.writerow([statistics.names[index], statistics.files[index], *map(number, values)])
    for text in reasons:
        print(f"warning: {text}")
    return {
        "estimated mIoU": metrics["mIoU"],
        "from": interval.low,
        "to": interval.high,
        "accuracy": 100 * float(estimate.accuracy.mean()),
        "source mIoU": estimation.source["mIoU"],
    }


def number(value: float) -> str:
    """Return a cell of a table, empty for NaN."""
    return f"{value:.4f}" if np.isfinite(value) else ""


def warnings(estimation: Estimation, statistics: ImageStatistics) -> list[str]:
    """Return the reasons to distrust an estimate."""
    from tmt_d2.estimation.estimators import AmplifiedConfidence, Confidence

    texts = []
    if len(statistics.names) < FEW_IMAGES:
        texts.append(f"only {len(statistics.names)} images: take the accuracy of images, not the mIoU")
    name = estimation.estimator.name
    if name == Confidence.name:
        texts.append("the model was trained on target images: after self-training its confidence says little")
    elif name == AmplifiedConfidence.name:
        texts.append("the model has no domain discriminators (--method estimator): after a change of domain, a guess")
    else:
        share = estimation.share_outside(statistics.arrays["domain"])
        if share > 0.5:
            texts.append(f"{share:.0%} of the images are less or more transferable than any image of the source")
    return texts


def write_worst(
    path: Path, predictor: Predictor, images: InputImages, statistics: ImageStatistics, estimation: Estimation
) -> None:
    """Draw the images with the lowest estimated accuracy with their predictions."""
    from tmt_d2.visualization.overlays import label_overlay
    from tmt_d2.visualization.panels import Panel, PanelRow, draw, save
    from tmt_d2.visualization.sizes import shrink

    accuracy = estimation.of(statistics.arrays["confusions"]).accuracy
    rank = {statistics.names[index]: float(accuracy[index]) for index in np.argsort(accuracy, kind="stable")[:WORST]}
    panels, predicted = {}, set[int]()
    for image in images:
        if image.name in rank:
            pixels = image.read("RGB")
            labels = predictor(pixels).labels.numpy()
            drawn = shrink(label_overlay(pixels, labels, predictor.classes))
            panels[image.name] = Panel(drawn, Path(image.name).name, f"{rank[image.name]:.0%}")
            predicted.update(np.unique(labels).tolist())
    ordered = [panels[name] for name in rank]
    rows = [PanelRow(ordered[start : start + COLUMNS]) for start in range(0, len(ordered), COLUMNS)]
    save(draw(rows, "lowest estimated accuracy", predictor.classes.legend(sorted(predicted))), path)


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
