"""Settings of SELF_TRAINING that contradict each other or the data sets."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode

from tmt_d2.data.datasets.registration import label_space_of
from tmt_d2.data.labeled import LabelChoice
from tmt_d2.errors import UserError

logger = logging.getLogger(__name__)


def check_settings(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: a setting has no effect, or needs images or labels that no batch has.
    """
    keys = cfg.SELF_TRAINING

    def refuse(key: str, message: str, hint: str = "") -> None:
        raise UserError(message, key=f"SELF_TRAINING.{key}", value=keys[key], hint=hint)

    has_labels = keys.LABELED_RATIO or keys.SOURCE_RATIO
    if keys.MIX == "classmix" and keys.UNLABELED_RATIO and not has_labels:
        refuse("MIX", "it pastes from labeled images, and LABELED_RATIO and SOURCE_RATIO are 0", "set MIX none")
    if keys.WARM_UP and not has_labels:
        refuse("WARM_UP", "it is training on labels alone, and LABELED_RATIO and SOURCE_RATIO are 0")
    if keys.FDA_BETA and not (keys.SOURCE_RATIO and keys.UNLABELED_RATIO):
        refuse("FDA_BETA", "it needs source and unlabeled images, and SOURCE_RATIO or UNLABELED_RATIO is 0")
    if keys.CLASS_BALANCE and not has_labels:
        message = "without any label, rare classes take over (LABELED_RATIO and SOURCE_RATIO are 0)"
        refuse("CLASS_BALANCE", message, "set it to 0.0, or use source images")
    if sum(keys.IGNORED_ROWS) >= 1:
        refuse("IGNORED_ROWS", "nothing is left of the images")
    if any(keys.IGNORED_ROWS) and not keys.UNLABELED_RATIO:
        refuse("IGNORED_ROWS", "they are left out of unlabeled images, and UNLABELED_RATIO is 0")
    if keys.CONFIDENCE_THRESHOLD and not keys.IGNORE_UNCONFIDENT and keys.WEIGHT_BY == "none":
        hint = "set IGNORE_UNCONFIDENT True, or WEIGHT_BY pixel or image"
        refuse("CONFIDENCE_THRESHOLD", "nothing depends on the confidence", hint)
    if not keys.LABELED_RATIO and LabelChoice.from_config(cfg).is_limited:
        logger.warning("SELF_TRAINING.LABELED_RATIO is 0: no label of the target is used, however many it has")


def check_source_classes(cfg: CfgNode) -> None:
    """Warn of classes of the target that the source lacks.

    Raises:
        UserError: it lacks all of them.
    """
    target, source = (
        set().union(*({*space.train_ids.values()} - {*space.never_occurs} for space in map(label_space_of, names)))
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.SOURCE_TRAIN)
    )
    names = label_space_of(cfg.DATASETS.TRAIN[0]).classes.names
    lacking = ", ".join(names[index] for index in sorted(target - source))
    if not target & source:
        raise UserError(
            f"none of them has any of the target's classes ({lacking})",
            key="DATASETS.SOURCE_TRAIN",
            value=cfg.DATASETS.SOURCE_TRAIN,
            hint="name another source, or set SELF_TRAINING.SOURCE_RATIO 0.0",
        )
    if lacking:
        logger.warning("the source has no %s: only labels of the target can teach them", lacking)
