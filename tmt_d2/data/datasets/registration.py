"""The five data sets under their names in Detectron2's catalogs.

``{cityscapes,bdd100k,mapillary,mapillary_b,gtav,synthia}_sem_seg_{train,val}``, ``gtav_sem_seg_test`` and
``gtav_sem_seg_all`` (all frames, for training without ``split.mat``). The files are searched when a split is used,
below ``$DETECTRON2_DATASETS`` (default: ``datasets``). Importing this module registers them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from tmt_d2.data.class_lists import MAX_CLASSES, ClassList
from tmt_d2.data.datasets import bdd100k, cityscapes, gtav, mapillary, synthia
from tmt_d2.data.datasets.label_spaces import IGNORE, LabelSpace, class_list
from tmt_d2.data.datasets.layouts import Layout, Listing
from tmt_d2.data.datasets.names import dataset_root
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.reader import DataError, read_image, read_image_of, read_label, stored_size
from tmt_d2.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """Layout and label space of the splits ``<name>_sem_seg_<split>``."""

    layout: Layout
    label_space: LabelSpace


DATA_SETS = {
    "cityscapes": DataSet(cityscapes.LAYOUT, cityscapes.CITYSCAPES),
    "bdd100k": DataSet(bdd100k.LAYOUT, bdd100k.BDD100K),
    "mapillary": DataSet(mapillary.LAYOUT, mapillary.MAPILLARY_A),
    "mapillary_b": DataSet(mapillary.LAYOUT, mapillary.MAPILLARY_B),
    "gtav": DataSet(gtav.LAYOUT, gtav.GTAV),
    "synthia": DataSet(synthia.LAYOUT, synthia.SYNTHIA),
}


def split_name(family: str, split: str) -> str:
    """Return a split's name in Detectron2's catalogs."""
    return f"{family}_sem_seg_{split}"


def register_all() -> None:
    """Register every split of every data set; a second call changes nothing."""
    for family, data_set in DATA_SETS.items():
        for split in data_set.layout.splits:
            register_split(split_name(family, split), partial(_load, family, split), data_set.label_space)


def register_split(name: str, load: Callable[[], list[Record]], label_space: LabelSpace) -> None:
    """Register one split in both catalogs, with the metadata of Detectron2's evaluator and visualizer."""
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, load)
    metadata = MetadataCatalog.get(name).set(
        stuff_classes=list(label_space.classes.names),
        stuff_colors=[list(color) for color in label_space.classes.colors],
        ignore_label=IGNORE,
        evaluator_type="sem_seg",
        label_space=label_space,
    )
    if label_space.class_subsets:
        metadata.set(class_subsets=label_space.class_subsets)


def check_registered(name: str, key: str) -> None:
    """Check that this project, or the user, has registered a split.

    Args:
        key: config key or option that names it.

    Raises:
        UserError: nobody has, or Detectron2 has, for its own evaluators.
    """
    if name.startswith("cityscapes_fine_"):
        instead = split_name("cityscapes", name.rpartition("_")[2])
        raise UserError("is Detectron2's own, for other evaluators", key=key, value=name, hint=f"use {instead}")
    if name in DatasetCatalog.list():
        return
    ours = sorted(each for each in DatasetCatalog.list() if hasattr(MetadataCatalog.get(each), "label_space"))
    nearest = did_you_mean(name, ours) or did_you_mean(name, DatasetCatalog.list())
    hint = nearest.removeprefix("; ") or f"registered are {', '.join(ours)}"
    raise UserError("is not registered, by name or by DATASETS.CUSTOM", key=key, value=name, hint=hint)


def records_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the records of registered splits, each with ``dataset`` and ``image_id``.

    Raises:
        UserError: a split has no image.
    """
    records = []
    for name in names:
        of_split = DatasetCatalog.get(name)
        if not of_split:
            raise UserError("the split has no image", key=name)
        records += [{"dataset": name, "image_id": record["file_name"], **record} for record in of_split]
    return records


def shared_images(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the image files that are in both groups of registered splits, sorted; links are not followed."""

    def images(names: Sequence[str]) -> set[str]:
        return {os.path.abspath(record["file_name"]) for name in names for record in DatasetCatalog.get(name)}

    return sorted(images(first) & images(second))


def label_space_of(dataset_name: str) -> LabelSpace:
    """Return the label space of a registered split.

    The label files of a split that was registered without one hold train ids: 0, 1, ... of its ``stuff_classes``, and
    ``ignore_label`` or 255.

    Raises:
        UserError: the split is not registered, or has neither a label space nor ``stuff_classes``.
    """
    check_registered(dataset_name, "data set")
    metadata = MetadataCatalog.get(dataset_name)
    space = metadata.get("label_space") or _plain_space(dataset_name, metadata)
    if space is None:
        set_classes = f"MetadataCatalog.get({dataset_name!r}).set(stuff_classes=[...], ignore_label=255)"
        raise UserError("has no classes", key="data set", value=dataset_name, hint=set_classes)
    return space


def _plain_space(name: str, metadata: Any) -> LabelSpace | None:
    names = tuple(metadata.get("stuff_classes", ()))
    if len(names) > MAX_CLASSES:
        raise UserError(f"has {len(names)} classes, and up to {MAX_CLASSES} fit", key="data set", value=name)
    colors = dict(zip(names, map(tuple, metadata.get("stuff_colors", ()))))
    ignored = frozenset({IGNORE, metadata.get("ignore_label", IGNORE)})
    ids = {index: index for index in range(len(names)) if index not in ignored}
    classes = class_list(names, colors)
    return LabelSpace(name, ids, frozenset(value for value in ignored if value <= 255), classes) if names else None


def common_classes(splits: Sequence[str]) -> ClassList:
    """Return the class list that registered splits share, with the colors of the first split.

    Raises:
        UserError: the lists differ, or as ``label_space_of``.
    """
    first, *others = splits
    classes = label_space_of(first).classes
    for name in others:
        if (other := label_space_of(name).classes).names != classes.names:
            raise UserError(
                f"{first} has {classes} and {name} has {other}: the splits of one run must share one class list",
                hint="see `class_list` and `train_ids` in docs/data.md",
            )
    return classes


def has_labels(split: str) -> bool:
    """Return True if an image of a registered split has a label."""
    return any(LABEL in record for record in records_of([split]))


def labeled_records(splits: Sequence[str]) -> list[Record]:
    """Return the records with a label of registered splits.

    Raises:
        UserError: a split has none.
    """
    records = []
    for name in splits:
        labeled = [record for record in records_of([name]) if LABEL in record]
        if not labeled:
            raise UserError("has no image with a label", key=name, hint="name a split with labels")
        records += labeled
    return records


def read_record_label(record: Mapping[str, str]) -> np.ndarray:
    """Return the (H, W) uint8 train ids of a record of a registered data set; raises as ``read_label``."""
    return read_label(record[LABEL], label_space_of(record["dataset"]))


def check_has_classes(key: str, records: Sequence[Record]) -> None:
    """Check that a pixel of some label has a class. Labels are read until one has, usually the first.

    Args:
        key: config key of the splits.

    Raises:
        DataError: every pixel of the readable labels is ignored.
    """
    readable = 0
    for record in records:
        try:
            if (read_record_label(record) != IGNORE).any():
                return
            readable += 1
        except DataError:  # reported when it is used in training
            continue
    if readable:
        raise DataError(
            f"every pixel of {readable} labels is ignored",
            key=key,
            value=", ".join(sorted({record["dataset"] for record in records})),
            hint="correct the ids of the classes, or the label files",
        )


def check_readable(records: Sequence[Record]) -> None:
    """Read the header of every image and label, and all of a file without one, or of another size than its label.

    Raises:
        DataError: as ``read_image_of`` and ``read_label``.
    """
    for record in records:
        if stored_size(record["file_name"]) is None:
            read_image(record["file_name"])
        if LABEL not in record:
            continue
        if (label_size := stored_size(record[LABEL])) is None:
            read_record_label(record)
        elif stored_size(record["file_name"]) != label_size:
            read_image_of(record)


def to_records(name: str, listing: Listing, label_space: LabelSpace, unlabeled_allowed: bool = False) -> list[Record]:
    """Return the records of a split for Detectron2's catalog.

    Pairs come first, then images without a label on purpose, which have no ``sem_seg_file_name``.

    Args:
        unlabeled_allowed: leave out images that lack a label, as in a subset.

    Raises:
        DataError: there is no record, or an image lacks a label.
    """
    alone = len(listing.images_alone)
    may_be_alone = unlabeled_allowed or listing.subset or MetadataCatalog.get(name).get("subset", False)
    if alone and not (may_be_alone and listing.pairs):
        hint = "leave such images out by DATASETS.SUBSETS, or `subset: true` in a YAML file" if listing.pairs else ""
        raise DataError(f"{alone} images have no label, e.g. {listing.images_alone[0]}", key=name, hint=hint)
    if not (listing.pairs or listing.unlabeled):
        raise DataError("no image of this split is on disk", key=name, hint="see `python -m datasets.check`")
    logger.info("%s: %d images with a label, read as %s", name, len(listing.pairs), label_space.name)
    if listing.unlabeled:
        logger.info("%s: %d images without a label", name, len(listing.unlabeled))
    if listing.left_out:
        logger.info("%s: left out %d known bad frames", name, len(listing.left_out))
    if listing.absent:
        logger.warning("%s: %d names in the split's list have no image", name, len(listing.absent))
    if alone or listing.labels_alone:
        counts = alone, len(listing.labels_alone)
        logger.warning("%s: left out %d images without a label and %d labels without an image", name, *counts)
    pairs = [
        {"file_name": image, LABEL: label, "image_id": stem, "dataset": name}
        for stem, (image, label) in listing.pairs.items()
    ]
    return pairs + [
        {"file_name": image, "image_id": stem, "dataset": name} for stem, image in listing.unlabeled.items()
    ]


def _load(family: str, split: str) -> list[Record]:
    data_set = DATA_SETS[family]
    listing = data_set.layout.listing(dataset_root(), split)
    return to_records(split_name(family, split), listing, data_set.label_space, data_set.layout.unlabeled_allowed)


register_all()
