"""The five data sets under their names in Detectron2's catalogs.

``{cityscapes,bdd100k,mapillary,mapillary_b,gtav,synthia}_sem_seg_{train,val}``, ``gtav_sem_seg_test`` and
``gtav_sem_seg_all`` (all frames, for training without ``split.mat``). Nothing on disk is looked at before a split is
used; the root is then ``$DETECTRON2_DATASETS`` (default: ``datasets``), as everywhere in Detectron2.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets import bdd100k, cityscapes, gtav, mapillary, synthia
from tmt_d2.data.datasets.label_spaces import IGNORE, LabelSpace, class_list
from tmt_d2.data.datasets.layouts import Layout, Listing
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.reader import DataError, has_header, read_image, read_label
from tmt_d2.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """One family of names: where the files lie, and what their values mean."""

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


def dataset_root() -> str:
    """The folder that holds the data sets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def split_name(family: str, split: str) -> str:
    """A split's name in Detectron2's catalogs."""
    return f"{family}_sem_seg_{split}"


def register_all() -> None:
    """Register every split of every data set; a second call changes nothing."""
    for family, data_set in DATA_SETS.items():
        for split in data_set.layout.splits:
            register_split(split_name(family, split), partial(_load, family, split), data_set.label_space)


def register_split(name: str, load: Callable[[], list[Record]], label_space: LabelSpace) -> None:
    """Put one split into both catalogs, with what Detectron2's evaluator and visualizer look for."""
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, load)
    metadata = MetadataCatalog.get(name).set(
        stuff_classes=list(label_space.classes.names),
        stuff_colors=[list(colour) for colour in label_space.classes.colors],
        ignore_label=IGNORE,
        evaluator_type="sem_seg",
        label_space=label_space,
    )
    if label_space.class_subsets:
        metadata.set(class_subsets=label_space.class_subsets)


def check_registered(name: str, said_by: str) -> None:
    """
    Args:
        said_by: where the name of the split stands, such as "--target city" or "DATASETS.TEST".

    Raises:
        UserError: nobody has registered a split of this name, or Detectron2 has, for its own evaluators.
    """
    if name.startswith("cityscapes_fine_"):
        instead = f"cityscapes_sem_seg_{name.rpartition('_')[2]}"
        raise UserError(f"{said_by}: {name!r} is Detectron2's own and read by other tools: use {instead}")
    if name in DatasetCatalog.list():
        return
    ours = sorted(each for each in DatasetCatalog.list() if hasattr(MetadataCatalog.get(each), "label_space"))
    hint = did_you_mean(name, ours) or did_you_mean(name, DatasetCatalog.list()) or f"; there are: {', '.join(ours)}"
    raise UserError(f"{said_by}: no data set {name!r} is registered, by name or by DATASETS.CUSTOM{hint}")


def records_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """Those of registered splits, whoever registered them; each says its data set and an id of its own."""
    return [
        {"dataset": name, "image_id": record["file_name"], **record}
        for name in names
        for record in get_detection_dataset_dicts(name, filter_empty=False)
    ]


def label_space_of(dataset_name: str) -> LabelSpace:
    """What the label files of a registered split hold. One that was registered elsewhere, the Detectron2 way, has train
    ids as they are: 0, 1, ... of its ``stuff_classes``, and ``ignore_label`` (255 too).

    Raises:
        UserError: no such name, or one without a label space and without ``stuff_classes``.
    """
    check_registered(dataset_name, "its labels")
    metadata = MetadataCatalog.get(dataset_name)
    space = metadata.get("label_space") or _plain_space(dataset_name, metadata)
    if space is None:
        raise UserError(
            f"data set {dataset_name!r} does not say its classes: "
            f"MetadataCatalog.get({dataset_name!r}).set(stuff_classes=[...], ignore_label=255)"
        )
    return space


def _plain_space(name: str, metadata: Any) -> LabelSpace | None:
    names = tuple(metadata.get("stuff_classes", ()))
    colors = dict(zip(names, map(tuple, metadata.get("stuff_colors", ()))))
    ignored = frozenset({IGNORE, metadata.get("ignore_label", IGNORE)})
    ids = {index: index for index in range(len(names)) if index not in ignored}
    classes = class_list(names, colors)
    return LabelSpace(name, ids, frozenset(value for value in ignored if value <= 255), classes) if names else None


def common_classes(splits: Sequence[str]) -> ClassList:
    """The one class list of registered splits, at least one; the colours are those of the first.

    Raises:
        UserError: their lists differ, or as ``label_space_of``.
    """
    first, *others = splits
    classes = label_space_of(first).classes
    for name in others:
        if (other := label_space_of(name).classes).names != classes.names:
            raise UserError(
                f"{first} has {classes} and {name} has {other}: the splits of one run share one class list, see "
                "`class_list` and `train_ids` in docs/data.md"
            )
    return classes


def labeled_records(splits: Sequence[str]) -> list[Record]:
    """Those of registered splits that have a label.

    Raises:
        UserError: a split has none.
    """
    records = []
    for name in splits:
        own = [record for record in records_of([name]) if LABEL in record]
        if not own:
            raise UserError(
                f"{name} has no image with a label, and labels are trained or measured on: name another split"
            )
        records += own
    return records


def read_record_label(record: Mapping[str, str]) -> np.ndarray:
    """(H, W) uint8 train ids of a record of a registered data set; raises as ``read_label``."""
    return read_label(record["sem_seg_file_name"], label_space_of(record["dataset"]))


def check_has_classes(key: str, records: Sequence[Record]) -> None:
    """Look for a label with a class; usually the first one has some, so that no other is read.

    Raises:
        DataError: no pixel of any label has a class. key: of the config, for the message.
    """
    readable = 0
    for record in records:
        try:
            if (read_record_label(record) != IGNORE).any():
                return
            readable += 1
        except DataError:  # named where it is met in training
            continue
    if readable:
        raise DataError(
            f"{key} {', '.join(sorted({record['dataset'] for record in records}))}: no pixel of {readable} labels has "
            "a class, all are ignored: correct the ids of the classes, or the label files"
        )


def check_readable(records: Sequence[Record]) -> None:
    """Look at the header of every image and label; only a file without one is read.

    Raises:
        DataError: as `read_image` and `read_label`.
    """
    for record in records:
        if not has_header(record["file_name"]):
            read_image(record["file_name"])
        if LABEL in record and not has_header(record[LABEL]):
            read_record_label(record)


def to_records(name: str, listing: Listing, label_space: LabelSpace, unlabeled_allowed: bool = False) -> list[Record]:
    """One dict per pair, as Detectron2's catalogs want them, then one without ``sem_seg_file_name`` per image that is
    meant to have no label; says in the log what was left out.

    Raises:
        DataError: there is neither, or an image lacks a label where that is not `unlabeled_allowed`, nor the split a
            subset on purpose.
    """
    alone = len(listing.images_alone)
    may_be_alone = unlabeled_allowed or listing.subset or MetadataCatalog.get(name).get("subset", False)
    if alone and not (may_be_alone and listing.pairs):
        way_out = "; DATASETS.SUBSETS, or `subset: true` in a YAML file, leaves such out" if listing.pairs else ""
        raise DataError(f"{name}: {alone} images have no label, the first is {listing.images_alone[0]}{way_out}")
    if not (listing.pairs or listing.unlabeled):
        raise DataError(
            f"{name}: no frame of this split is on disk; `python -m tmt_d2.cli.check_data` says what is there"
        )
    logger.info("%s: %d images, labels read as %s", name, len(listing.pairs), label_space.name)
    if listing.unlabeled:
        logger.info("%s: %d images without a label", name, len(listing.unlabeled))
    if listing.left_out:
        logger.info("%s: left out %d known bad frames", name, len(listing.left_out))
    if listing.absent:
        logger.warning("%s: %d frames of the split's list are not on disk", name, len(listing.absent))
    if alone or listing.labels_alone:
        counts = alone, len(listing.labels_alone)
        logger.warning("%s: left out %d images without a label and %d labels without an image", name, *counts)
    pairs = [
        {"file_name": image, "sem_seg_file_name": label, "image_id": stem, "dataset": name}
        for stem, (image, label) in listing.pairs.items()
    ]
    return pairs + [
        {"file_name": image, "image_id": stem, "dataset": name} for stem, image in listing.unlabeled.items()
    ]


def _load(family: str, split: str) -> list[Record]:
    data_set = DATA_SETS[family]
    listing = data_set.layout.listing(dataset_root(), split)
    return to_records(split_name(family, split), listing, data_set.label_space, data_set.layout.unlabeled_allowed)
