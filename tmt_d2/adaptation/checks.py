"""Checks of a task's config and data before a model is built."""

from __future__ import annotations

import logging
from dataclasses import replace

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from tmt_d2.adaptation.task import Split, Task, task_of
from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.datasets.registration import (
    check_has_classes,
    check_readable,
    check_registered,
    common_classes,
    labeled_records,
    records_of,
    shared_images,
)
from tmt_d2.data.mapper import resized_size
from tmt_d2.data.reader import DataError, stored_size
from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import ESTIMATED, metric_names

logger = logging.getLogger(__name__)

NUM_CLASSES_UNSET = (54, 19)  # Detectron2's default and that of configs/models: the data sets' number replaces them
MAX_SHRINKING = 4  # of an edge, without a warning
SAMPLED = 16  # number of images whose size is compared


def check_task(cfg: CfgNode, eval_only: bool = False) -> ClassList:
    """Check what would otherwise fail, or mislead, long after the start; no image is read.

    Returns:
        the class list of the model, see ``classes_of_run``.

    Raises:
        UserError: names the key. FileNotFoundError: a data set is missing.
    """
    task, data = task_of(cfg), cfg.DATASETS
    if task.architecture not in ("", cfg.MODEL.META_ARCHITECTURE):
        raise UserError(
            f"TRANSFER.METHOD {task.name} needs {task.architecture}",
            key="MODEL.META_ARCHITECTURE",
            value=cfg.MODEL.META_ARCHITECTURE,
        )
    if not cfg.MODEL.WEIGHTS and (task.starts_from or eval_only):
        start = "evaluation" if eval_only else f"TRANSFER.METHOD {task.name}"
        raise UserError(
            f"it is empty, and {start} starts from a checkpoint",
            key="MODEL.WEIGHTS",
            hint=f"name model_final.pth of {task.starts_from or task.name}",
        )
    splits = splits_of(task, cfg, eval_only)
    for split in splits:
        _check_split(cfg, split)
    task.check(cfg, eval_only)
    both = {*data.SOURCE_TRAIN} & {*data.TRAIN}
    if both and "SOURCE_TRAIN" in (split.key for split in splits):
        logger.warning(
            "DATASETS.SOURCE_TRAIN and DATASETS.TRAIN both name %s: source and target are one domain, T means nothing",
            ", ".join(sorted(both)),
        )
    if not eval_only:
        _warn_of_shared_images(cfg, task)
        if (ignored := cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE) != IGNORE:
            message = f"labels are read as train ids, of which {IGNORE} is ignored"
            raise UserError(message, key="MODEL.SEM_SEG_HEAD.IGNORE_VALUE", value=ignored, hint=f"set it to {IGNORE}")
        task.labeled_images(cfg)
        if task.measures_splits:
            _check_best(cfg)
    classes, configured = classes_of_run(cfg, eval_only), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if configured not in (len(classes), *NUM_CLASSES_UNSET):
        raise UserError(
            f"the data sets have {classes}",
            key="MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            value=configured,
            hint=f"set it to {len(classes)}, or leave it out",
        )
    return classes


def splits_of(task: type[Task], cfg: CfgNode, eval_only: bool = False) -> list[Split]:
    """Return the keys of DATASETS that a run reads."""
    return [*([] if eval_only else task.training_splits(cfg)), *evaluation_splits(task, cfg)]


def evaluation_splits(task: type[Task], cfg: CfgNode) -> list[Split]:
    """Return the keys of DATASETS that the evaluation reads; an estimated metric needs labels of the source only."""
    if cfg.TEST.BEST.METRIC != ESTIMATED or not task.measures_splits:
        return [*task.test_splits]
    source = Split("SOURCE_TEST", hint="TEST.BEST.METRIC estimated is fitted on labeled images of the source")
    return [replace(split, needs_labels=False) for split in task.test_splits] + [source]


def classes_of_run(cfg: CfgNode, eval_only: bool = False) -> ClassList:
    """Return the one class list of the splits that define the classes.

    Raises:
        UserError: they have different ones.
    """
    splits = splits_of(task_of(cfg), cfg, eval_only)
    return common_classes([name for split in splits if split.defines_classes for name in cfg.DATASETS[split.key]])


def _check_split(cfg: CfgNode, split: Split) -> None:
    key, names = f"DATASETS.{split.key}", cfg.DATASETS[split.key]
    if not names:
        raise UserError("it is empty", key=key, hint="name at least one registered split")
    for name in names:
        check_registered(name, key)
        try:
            if split.needs_labels:
                labeled_records([name])
            else:
                DatasetCatalog.get(name)
        except FileNotFoundError as error:
            if not split.hint:
                raise
            raise UserError(str(error), key=key, value=name, hint=split.hint) from error


def _warn_of_shared_images(cfg: CfgNode, task: type[Task]) -> None:
    unread = () if cfg.SELF_TRAINING.UNLABELED_RATIO else ("UNLABELED",)
    keys = [split.key for split in task.training_splits(cfg) if split.key not in unread]
    trained = dict.fromkeys(name for key in keys for name in cfg.DATASETS[key])
    for tested in evaluation_splits(task, cfg):
        if shared := shared_images(cfg.DATASETS[tested.key], [*trained]):
            logger.warning(
                "%d images of DATASETS.%s, such as %s, are trained on (%s): they are no unseen test",
                *(len(shared), tested.key, shared[0], ", ".join(f"DATASETS.{key}" for key in keys)),
            )


def _check_best(cfg: CfgNode) -> None:
    best, tests = cfg.TEST.BEST, cfg.DATASETS.TEST
    if not best.METRIC:
        if best.PATIENCE:
            hint = "name the metric, TEST.BEST.METRIC mIoU"
            raise UserError("it needs a metric", key="TEST.BEST.PATIENCE", value=best.PATIENCE, hint=hint)
        return
    if cfg.TEST.EVAL_PERIOD <= 0:
        raise UserError("it needs evaluations", key="TEST.BEST.METRIC", value=best.METRIC, hint="set TEST.EVAL_PERIOD")
    if best.SPLIT and best.SPLIT not in tests:
        hint = f"choose one of DATASETS.TEST, {', '.join(tests)}"
        raise UserError(key="TEST.BEST.SPLIT", value=best.SPLIT, hint=hint)
    known = [*metric_names(best.SPLIT or tests[0]), ESTIMATED]
    if best.METRIC not in known:
        raise UserError(key="TEST.BEST.METRIC", value=best.METRIC, hint=f"choose one of {', '.join(known)}")


def check_files(cfg: CfgNode, eval_only: bool = False) -> None:
    """Check that images and labels can be read, which the first evaluation would do only after hours of training.

    Raises:
        DataError: an image to test on is unreadable, or no labeled training image has a pixel of a class.
    """
    task = task_of(cfg)
    for split in evaluation_splits(task, cfg):
        names = cfg.DATASETS[split.key]
        tested = labeled_records(names) if split.needs_labels else records_of(names)
        check_readable(tested)
        if split.needs_labels:
            try:
                check_has_classes(f"DATASETS.{split.key}", tested)
            except DataError as error:
                logger.warning("%s; no metric can be measured on it", error)
    if not eval_only:
        for key, records in task.labeled_images(cfg).items():
            check_has_classes(key, records)


def warn_of_small_inputs(cfg: CfgNode) -> None:
    """Warn once if some of the training images lose more than three quarters of each edge."""
    records, sizes = records_of(cfg.DATASETS.TRAIN), cfg.INPUT
    ranges = (
        ("INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST", sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST),
        ("INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN", max(sizes.MIN_SIZE_TRAIN), sizes.MAX_SIZE_TRAIN),
    )
    for record in records[:: -(-len(records) // SAMPLED)]:
        file = record["file_name"]
        size = stored_size(file)
        if size is None:
            continue
        for keys, shortest, longest in ranges:
            resized = resized_size(size, shortest, longest)
            if min(size) > MAX_SHRINKING * min(resized):
                logger.warning(
                    "%s shrink images such as %s from %d x %d to %d x %d pixels: choose larger ones, see docs/data.md",
                    *(keys, file, *size, *resized),
                )
                return
