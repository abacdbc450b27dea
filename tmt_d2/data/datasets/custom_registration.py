"""Registration of a user's own data sets, and of subsets on purpose, in Detectron2's catalogs."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.datasets.custom_files import CustomDataSet
from tmt_d2.data.datasets.registration import Record, check_registered, register_split, split_name, to_records
from tmt_d2.data.reader import DataError

logger = logging.getLogger(__name__)


def register_custom(yaml_path: str | Path) -> list[str]:
    """Register ``<name>_sem_seg_<split>`` for every split of the file; a second call changes nothing, unless the file
    has changed.

    The folders are looked at when a split is used.

    Returns:
        The registered names.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is wrong (the message names the key and the reason), or a name is already taken.
    """
    data_set = read_custom(yaml_path)
    names = [split_name(data_set.name, split) for split in data_set.splits]
    for name in names:
        known = MetadataCatalog.get(name)
        if name in DatasetCatalog and known.get("custom_file") != str(data_set.file):
            raise DataError(f"{yaml_path}: name: {name} is already registered by another data set; choose another name")
        if known.get("custom", data_set) != data_set:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.remove(name)
    for split, name in zip(data_set.splits, names):
        register_split(name, partial(_load, data_set, split), data_set.label_space)
        MetadataCatalog.get(name).set(custom_file=str(data_set.file), custom=data_set)
    return names


def register_data(cfg: CfgNode, missing_ok: bool = False) -> None:
    """Register DATASETS.CUSTOM and note DATASETS.SUBSETS; a second call changes nothing.

    Args:
        missing_ok: a file that is not there is passed over with a warning, for who may do without its splits.

    Raises: as `register_custom`; UserError: a subset is not registered.
    """
    for path in cfg.DATASETS.CUSTOM:
        if missing_ok and not Path(path).expanduser().is_file():
            logger.warning("DATASETS.CUSTOM: %s is not here, nor are its splits", path)
        else:
            register_custom(path)
    for name in cfg.DATASETS.SUBSETS:
        if not missing_ok:
            check_registered(name, "DATASETS.SUBSETS")
        MetadataCatalog.get(name).set(subset=True)


def _load(data_set: CustomDataSet, split: str) -> list[Record]:
    return to_records(split_name(data_set.name, split), data_set.listing(split), data_set.label_space)
