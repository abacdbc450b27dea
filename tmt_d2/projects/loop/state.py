"""Where a project is, computed from its files: rounds, models, their accuracy, and the next command."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from tmt_d2.config import setup_cfg
from tmt_d2.data.datasets.custom import read_custom, register_custom
from tmt_d2.data.datasets.registration import labeled_records
from tmt_d2.data.image_lists import first_names
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.reader import read_image_of, read_label
from tmt_d2.estimation.collect import Collector, spread
from tmt_d2.estimation.estimate import Estimation, soft_confusion
from tmt_d2.estimation.estimators import VERSION
from tmt_d2.estimation.sample import PixelSample
from tmt_d2.evaluation.semantic import confusion_matrix
from tmt_d2.inference.predictor import Predictor
from tmt_d2.inference.statistics import statistics_of, testing_identity
from tmt_d2.projects.loop.estimator import LEAST, LEVEL, Measured, difference_estimate, images_to_halve
from tmt_d2.projects.loop.project import DATA, FINISHED, FRAME, MODELS, ROUNDS, TRAINED_ON, Model, Project
from tmt_d2.utils.files import read_json, write_json

RESULTS, METRICS = "results", ("measured", "accuracy", "estimated")
ROUND, TEST_IMAGES = 10, 20  # images that the next command proposes
IOU = "IoU-"  # before the name of a class, in names of metrics

T = TypeVar("T")


@dataclass(frozen=True)
class ModelStatus:
    """Accuracy of a model in percent; None where it cannot be known.

    Attributes:
        labels: number of images whose labels it was trained on.
        measured, accuracy: on the new images without a training label, from labels that it was not trained on.
        drawn: these images were drawn for the test; False: they were labeled after the training.
        estimated: mIoU without labels, from the source.
        measured_iou, estimated_iou: of each class that occurs.
        more: number of further test images that halve the interval.
    """

    number: int
    labels: int
    measured: Measured | None = None
    accuracy: Measured | None = None
    drawn: bool = True
    estimated: Measured | None = None
    measured_iou: dict[str, Measured] = field(default_factory=dict)
    estimated_iou: dict[str, float] = field(default_factory=dict)
    more: int = 0


@dataclass(frozen=True)
class Status:
    """State of a project.

    Attributes:
        images, labeled: number of images, and of those with a label to train on.
        drawn, test: number of images drawn for the test, and of those with a label.
        rounds: number, purpose, number of proposed images, number of those with a label.
        missing: label files and test images without an image, as ``Project.missing``.
        next: the command to type.
    """

    images: int
    labeled: int
    drawn: int
    test: int
    rounds: list[tuple[int, str, int, int]]
    models: list[ModelStatus]
    next: str
    missing: dict[str, list[str]]


def status(project: Project) -> Status:
    """Return the state; accuracies that are not in ``results/`` are computed."""
    project.refresh()
    test = project.test()
    return Status(
        images=len(project.files),
        labeled=len(project.labeled()),
        drawn=len(test),
        test=len({*project.with_label()}.intersection(test)),
        rounds=rounds_of(project),
        models=[model_status(project, model) for model in project.models()],
        next=next_command(project),
        missing=project.missing(),
    )


def rounds_of(project: Project) -> list[tuple[int, str, int, int]]:
    """Return number, purpose, number of proposed images and number of those with a label, of each round."""
    with_label, rows = {*project.with_label()}, []
    for folder in project.rounds():
        names, purpose = project.proposed(folder), "test" if (folder / FRAME).is_file() else "train"
        rows.append((int(folder.name), purpose, len(names), len(with_label.intersection(names))))
    return rows


def next_command(project: Project) -> str:
    """Return the arguments of ``tmt-adapt`` with which to go on, and a remark."""
    current = project.newest_training()
    is_current = current is not None and (current / TRAINED_ON).read_text(encoding="utf-8") == project.label_digests()
    waiting = [number for number, _, _, labeled in rounds_of(project) if not labeled]
    if current and is_current and not (current / FINISHED).is_file():
        names = (file.stem.removeprefix("model_") for file in current.glob("model_*.pth"))
        saved = max((int(name) + 1 for name in names if name.isdigit()), default=0)
        return f"train        ({MODELS}/{current.name}: {saved} iterations are saved; it continues if it does not run)"
    if waiting:
        return f"import EXPORT        (the labels of {ROUNDS}/{waiting[0]:02d})"
    if project.labeled() and not is_current:
        return "train"
    if free := len(project.free()):
        return f"propose --budget {min(ROUND, free)}"
    return "predict FOLDER --output FOLDER        (no image is left to propose)"


def model_status(project: Project, model: Model) -> ModelStatus:
    """Return the accuracy of a model, from ``results/NN.json`` if it is of these images, test labels and weights."""
    file = _result_file(project, model)
    stratum_of, tested, drawn = sample_of(project, model)
    if len(tested) < LEAST and not project.source_test:
        return ModelStatus(model.number, len(model.trained_on))
    digest = hashlib.sha256(repr([*stratum_of.items(), drawn]).encode())
    for name in tested:
        digest.update(project.label_of(name).read_bytes())
    cfg = setup_cfg(str(model.config), ["MODEL.WEIGHTS", model.weights])
    identity = {"test": digest.hexdigest(), "images": list(project.files), **_identity(project, model, cfg)}
    if file.is_file() and read_json(file, ["identity"])["identity"] == identity:
        return _read(file)
    predictor = project.predictor(model)
    confusions, estimation = predicted_confusions(project, model, predictor)
    values: dict[str, Any] = {}
    names = [name for name in stratum_of if name in confusions]  # the others are unreadable
    indices = np.flatnonzero(np.isin(names, tested))
    if len(indices) >= LEAST:
        predicted = np.stack([confusions[name] for name in names])
        truth = np.stack([true_confusion(project, predictor, names[index]) for index in indices])
        strata = np.array([stratum_of[name] for name in names])
        metrics = difference_estimate(predicted, truth, indices, strata, predictor.classes.names)
        values = {"measured": metrics["mIoU"], "accuracy": metrics["accuracy"], "drawn": drawn}
        values["measured_iou"] = _of_classes(metrics)
        values["more"] = images_to_halve(len(indices), len(names))
    if estimation is not None:
        estimate = estimation.of(np.stack(list(confusions.values())))
        expected = estimate.metrics()
        values["estimated"] = Measured(expected["mIoU"], *estimate.interval("mIoU"))
        values["estimated_iou"] = _of_classes({name: iou for name, iou in expected.items() if np.isfinite(iou)})
    result = ModelStatus(model.number, len(model.trained_on), **values)
    file.parent.mkdir(exist_ok=True)
    write_json(file, asdict(result) | {"identity": identity})
    return result


def sample_of(project: Project, model: Model) -> tuple[dict[str, int], list[str], bool]:
    """Return the images that a model is measured on.

    They are those that were drawn for the test. Without labels of these, they are all that were labeled after its
    training (forward validation): the model does not know their labels, but they were chosen, not drawn.

    Returns:
        stratum of each image that the result is for; those with a label to measure on; True if these were drawn.
    """
    rows = [row for row in project.frame() if row["image"] not in model.trained_on]
    drawn = [row["image"] for row in rows if row["round"] and project.label_of(row["image"]).is_file()]
    if len(drawn) >= LEAST:
        return {row["image"]: int(row["stratum"]) for row in rows}, drawn, True
    others = dict.fromkeys((name for name in project.files if name not in model.trained_on), 0)
    return others, [name for name in project.labeled() if name in others], False


def _of_classes(metrics: Mapping[str, T]) -> dict[str, T]:
    """Return the IoU of each class by its name."""
    return {name.removeprefix(IOU): value for name, value in metrics.items() if name.startswith(IOU)}


def _read(file: Path) -> ModelStatus:
    known = read_json(file, [each.name for each in fields(ModelStatus)])
    values = {each.name: known[each.name] for each in fields(ModelStatus)}
    values |= {key: known[key] and Measured(**known[key]) for key in METRICS}
    values["measured_iou"] = {name: Measured(**value) for name, value in known["measured_iou"].items()}
    return ModelStatus(**values)


def known_models(project: Project) -> list[ModelStatus]:
    """Return what was computed last for each model, which new labels may have outdated."""
    files = [_result_file(project, model) for model in project.models()]
    return [_read(file) for file in files if file.is_file()]


def _result_file(project: Project, model: Model) -> Path:
    return project.folder / RESULTS / f"{model.number:02d}.json"


def predicted_confusions(
    project: Project, model: Model, predictor: Predictor
) -> tuple[dict[str, np.ndarray], Estimation | None]:
    """Return the expected confusion matrix of every readable image, (K, K), by name, and their estimator, if any.

    They are calibrated on the source where the project has labeled images of it that no model was trained on.
    """
    collect, estimation = Collector(predictor.cfg, predictor.model), None
    if project.source_test:
        for file in project.source_custom:
            register_custom(file)
        sample = collect.of_records(spread(labeled_records(project.source_test)), progress=project.source_test[0])
        estimation = Estimation(sample, predictor.classes.names, adapted=_is_adapted(model))

    def measure(pixels: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        sample = PixelSample.concatenate([collect(each) for each in pixels])
        if estimation is not None:
            return {"confusions": np.asarray(estimation(sample).confusions, np.float32)}
        return {"confusions": soft_confusion(sample.probabilities, sample.predicted).numpy()}

    identity = _identity(project, model, predictor.cfg)
    name = f"confusions-{model.number:02d}"
    found = project.cached(name, lambda folder: statistics_of(project.images, folder, identity, measure))
    names = [project.names[os.path.abspath(file)] for file in found.files]
    return dict(zip(names, found.arrays["confusions"])), estimation


def _identity(project: Project, model: Model, cfg: CfgNode) -> dict[str, Any]:
    """Return the values that the accuracy of a model depends on, besides the images and their labels."""
    values = {"source": project.source_test, "adapted": _is_adapted(model), "version": VERSION}
    return testing_identity(cfg) | values


def _is_adapted(model: Model) -> bool:
    """Return True if a model was trained on the new images; the config of the source model is that of a training."""
    return model.number > 0


def true_confusion(project: Project, predictor: Predictor, name: str) -> np.ndarray:
    """Return the confusion matrix of a labeled image, (K, K), in shares of all its pixels; some have no label."""
    label_file, count = str(project.label_of(name)), len(predictor.classes)
    truth = read_label(label_file, read_custom(project.folder / DATA).label_space)
    pixels = read_image_of({"file_name": project.files[name], LABEL: label_file}, "RGB")
    predicted = predictor(pixels).labels
    counts = confusion_matrix(predicted, torch.from_numpy(truth), count).numpy()
    return counts / truth.size


def interval_text(value: Measured | None) -> str:
    """Return such as "43.1 (40.0-46.2)"."""
    return "-" if value is None else f"{value.value:.1f} ({value.low:.1f}-{value.high:.1f})"


def lines(project: Project, state: Status) -> list[str]:
    """Return the state as text."""
    rows = [
        [model.number or "source", model.labels, *map(interval_text, (model.measured, model.accuracy, model.estimated))]
        for model in state.models
    ]
    rounds = [[f"{number:02d}", purpose, proposed, labeled] for number, purpose, proposed, labeled in state.rounds]
    texts = [
        f"{project.folder}: {state.images} images, {state.labeled} labeled for training, "
        f"{state.test} of {state.drawn} test images labeled"
    ]
    if state.missing:
        counts = " and ".join(f"{len(names)} {kind}" for kind, names in state.missing.items())
        texts += [f"{counts} have no image: {first_names([*itertools.chain(*state.missing.values())])}"]
    if rounds:
        texts += ["", tabulate(rounds, headers=["round", "for", "proposed", "labeled"], disable_numparse=True)]
    if rows:
        headers = ["model", "labels", "mIoU measured", "accuracy measured", "mIoU estimated"]
        texts += ["", tabulate(rows, headers=headers, disable_numparse=True)]
    measured = [model for model in state.models if model.measured]
    if measured and measured[-1].drawn:
        texts += [
            f"measured: {LEVEL:.0%} interval from the test images; estimated: without labels of the new images",
            f"{measured[-1].more} more test images would halve the interval",
        ]
    elif measured:
        texts += ["measured: on labels that are newer than the model, of chosen images: biased, mostly too low"]
    budget = min(TEST_IMAGES, len(project.free()) // 3)
    if not state.drawn and budget >= LEAST:
        texts += [f"no test images: `propose --purpose test --budget {budget}` draws them"]
    return [*texts, "", f"next: tmt-adapt {state.next}"]
