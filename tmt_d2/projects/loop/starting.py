"""A new project, or the one that is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog

from tmt_d2.cli.common import check_output_folder
from tmt_d2.config import replace_keys, setup_cfg
from tmt_d2.data.datasets.custom import read_class_list, read_custom, register_custom
from tmt_d2.data.datasets.registration import label_space_of, labeled_records, split_name
from tmt_d2.engine.checkpoint.classes import read_classes as classes_of_checkpoint
from tmt_d2.engine.loading import load_model
from tmt_d2.errors import UserError
from tmt_d2.inference.folder import write_classes
from tmt_d2.projects.annotation.importing import data_set, images_below
from tmt_d2.projects.annotation.labels import YAML, LabelClasses, read_classes
from tmt_d2.projects.loop.choices import CONFIG, NO_MODEL, PROJECT
from tmt_d2.projects.loop.project import LABELS, MODELS, OWN, Project, files_of, write_config
from tmt_d2.utils.files import atomic_write


def adapt(
    folder: str | Path, images: str = "", config_file: str = "", model: str = NO_MODEL, **options: Any
) -> Project:
    """Return the project in a folder, which is started if there is none yet.

    Args:
        images, config_file, model, options: of ``start``; for a project that exists only the folder is needed.

    Raises:
        UserError: there is no project, and no ``images`` to start it with; it has other images or another source model.
    """
    if images and not (Path(folder) / PROJECT).is_file():
        return start(folder, images, config_file, model, **options)
    project = Project(folder)
    weights = "" if model == NO_MODEL else model
    for key, value, known in (("images", images, project.place), ("model", weights, project.weights)):
        if value and str(Path(value).resolve()) != known:
            hint = "choose another folder, or leave it out"
            raise UserError(f"the project in {folder} has {known or NO_MODEL}", key=key, value=value, hint=hint)
    return project


def start(
    output: str | Path,
    images: str,
    config_file: str,
    model: str = NO_MODEL,
    *,
    classes: str = "",
    source_data: str = "",
    opts: Sequence[str] = (),
) -> Project:
    """Write a new project.

    Args:
        images: a folder, searched with its subfolders.
        model: checkpoint with its classes, or "none".
        classes: of the labels, without a model: a YAML file with a list of names, or as in ``read_classes``.
        source_data: labeled data that the model was trained on, for training and for estimates: the name of a data
            set with the splits train and val, or its YAML file.

    Raises:
        UserError: a value cannot be used; nothing is written.
    """
    folder = Path(output).resolve()
    if (folder / PROJECT).is_file():
        raise UserError("is a project already", key="--output", value=str(output), hint="choose another folder")
    if not Path(images).is_dir():
        raise UserError("is no folder", key="--images", value=images)
    check_output_folder(Path(output), images, "--images")
    if known := [name for name in OWN if (folder / name).exists()]:
        message = f"it has {', '.join(known)}, which would be overwritten"
        raise UserError(message, key="--output", value=str(output), hint="choose another folder")
    found = images_below(images)
    names = list(files_of(found))
    own = _classes_of(model, classes)
    data_set(folder / LABELS, found.top, names, [], own)
    custom, train, test = _source_splits(source_data)
    for split in (*train, *test):
        if (classes_there := label_space_of(split).classes).names != own.classes.names:
            message = f"has {classes_there}, the labels will have {own.classes}"
            raise UserError(message, key="--source-data", value=source_data, hint="leave it out")
    weights = "" if model == NO_MODEL else str(Path(model).resolve())
    method = "self-training" if weights or setup_cfg(config_file, opts).MODEL.WEIGHTS else "source"
    cfg = setup_cfg(config_file, opts, method)
    cfg = replace_keys(
        cfg,
        {
            "MODEL.WEIGHTS": weights or cfg.MODEL.WEIGHTS,
            "MODEL.MASK_FORMER.IGNORED_PIXELS": "ignore",
            "DATASETS.CUSTOM": tuple(custom),
            "DATASETS.SOURCE_TRAIN": tuple(train),
            "DATASETS.SOURCE_TEST": tuple(test),
            "OUTPUT_DIR": str(folder / MODELS / "01"),
            **({} if train else {"SELF_TRAINING.SOURCE_RATIO": 0.0}),
        },
    )
    if weights:
        load_model(cfg)
    values: dict[str, Any] = {"images": _stored(images, folder), "weights": weights and _stored(weights, folder)}
    values["source_custom"] = [_stored(place, folder) for place in custom]
    values |= {"source_train": train, "source_test": test}
    folder.mkdir(parents=True, exist_ok=True)
    write_classes(folder, own.classes)
    write_config(folder / CONFIG, cfg)
    with atomic_write(folder / PROJECT, "w") as file:
        yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)
    return Project(folder)


def _stored(place: str, folder: Path) -> str:
    """Return a path as ``project.yaml`` has it: relative if it lies in the project's folder, which may be moved."""
    path = Path(place).resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _classes_of(model: str, place: str) -> LabelClasses:
    if model != NO_MODEL:
        if place:
            raise UserError("the model has its own classes", key="--classes", value=place, hint="leave it out")
        if not Path(model).is_file():
            raise UserError("does not exist", key="--model", value=model, hint="name a checkpoint, or none")
        classes = classes_of_checkpoint(model)
        if classes is None:
            hint = "name a checkpoint that this project trained, or none"
            raise UserError("does not contain its classes", key="--model", value=model, hint=hint)
        return LabelClasses(classes, tuple(range(len(classes))))
    if not place:
        raise UserError("there is no model to take them from", key="--classes", hint="name a YAML file with their list")
    if Path(place).suffix.lower() in YAML and (listed := read_class_list(place)):
        return LabelClasses(listed, tuple(range(len(listed))))
    return read_classes(place)


def _source_splits(place: str) -> tuple[list[str], list[str], list[str]]:
    """Return data set files, splits to train on and splits that no model was trained on.

    Raises:
        UserError: there is no split "train" with labels; "val" is optional.
    """
    if not place:
        return [], [], []
    custom, name = [], place
    if Path(place).suffix.lower() in YAML:
        custom, name = [str(Path(place).resolve())], read_custom(place).name
        register_custom(place)
    train, test = ([split_name(name, split)] for split in ("train", "val"))
    known = DatasetCatalog.list()
    if train[0] not in known:
        raise UserError(f"there is no split {train[0]}", key="--source-data", value=place, hint="name a data set")
    labeled_records(train)
    return custom, train, test if test[0] in known else []
