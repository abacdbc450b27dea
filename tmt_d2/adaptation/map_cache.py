"""Cache of T: computed once per training image by the frozen source model, before fine-tuning begins."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from tmt_d2.adaptation.task import Load
from tmt_d2.config import get_key
from tmt_d2.data.datasets.registration import records_of
from tmt_d2.data.labeled import LabelChoice
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.maps import TransferabilityMaps
from tmt_d2.data.reader import UNREADABLE
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils.files import sha256_of
from tmt_d2.utils.signals import Stoppable

logger = logging.getLogger(__name__)

FOLDER = "transferability"
SECONDS_BETWEEN_LINES = 10
# Keys that T of an image depends on, besides the weights and the other sections of MODEL.
KEYS = ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.FORMAT", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY")
# Keys of MODEL.TMT that an estimator depends on, and with it T.
ESTIMATOR_KEYS = ("REGIONS", "CELL_SIZES", "ITERATIONS", "KAPPA", "DISCRIMINATOR")


def reads_maps(cfg: CfgNode) -> bool:
    """Return True if training reads T from disk: T acts there, the features are fixed and TRANSFER.MAP_CACHE is set."""
    tmt = cfg.MODEL.TMT
    has_t = issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), TransferableMaskFormer)
    acts = tmt.ATTENTION != "off" and tmt.TRAIN_ATTENTION
    return has_t and acts and tmt.FEATURES == "source" and bool(cfg.TRANSFER.MAP_CACHE)


def maps_of(cfg: CfgNode) -> TransferabilityMaps | None:
    """Return the maps that training reads, whether they are there yet or not; None where it reads none."""
    if not reads_maps(cfg):
        return None
    weights = PathManager.get_local_path(cfg.MODEL.WEIGHTS)
    parent = Path(weights).parent / FOLDER if cfg.TRANSFER.MAP_CACHE == "auto" else Path(cfg.TRANSFER.MAP_CACHE)
    return TransferabilityMaps(parent / _fingerprint(cfg, weights))


def prepare_maps(cfg: CfgNode, model: nn.Module, load: Load) -> TransferabilityMaps | None:
    """Compute the missing maps of the labeled images of DATASETS.TRAIN, shared by all processes.

    Args:
        load: (path, model), puts the weights of a file into the model.

    Raises:
        OSError: the folder cannot be written to.
    """
    maps = maps_of(cfg)
    if maps is None:
        return None
    assert isinstance(model, TransferableMaskFormer)
    records = LabelChoice.from_config(cfg).of(records_of(cfg.DATASETS.TRAIN))
    missing = [record for record in records if os.path.isfile(record["file_name"]) and not maps.path(record).is_file()]
    comm.synchronize()  # every process has looked before any writes
    if missing:
        maps.folder.mkdir(parents=True, exist_ok=True)
        logger.info("computing transferability of %d images once, in %s", len(missing), maps.folder)
        load(cfg.MODEL.WEIGHTS, model)
        _write(cfg, model, missing, maps)
    comm.synchronize()
    return maps


class _Readable:
    """A mapper that returns {} for an unreadable image: training names it and replaces it."""

    def __init__(self, mapper: SemanticMapper) -> None:
        self.mapper = mapper

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.mapper(record)
        except UNREADABLE:
            return {}


@torch.no_grad()
def _write(
    cfg: CfgNode, model: TransferableMaskFormer, records: list[dict[str, Any]], maps: TransferabilityMaps
) -> None:
    own = records[comm.get_rank() :: comm.get_world_size()]
    loader: Iterable[list[dict[str, Any]]] = []  # Detectron2 has no loader of an empty list
    if own:
        loader = build_detection_test_loader(
            own,
            mapper=_Readable(SemanticMapper(cfg, is_train=False)),
            sampler=range(len(own)),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
    start = logged = time.perf_counter()
    with evaluation_mode(model):
        for done, (batch, record) in enumerate(zip(Stoppable(loader), own), 1):
            if batch[0]:
                images = model.preprocess(batch)
                levels = model.estimate(images, model.encode(images))
                maps.write(record, [level.logits_of(0) for level in levels], images.image_sizes[0])
            now = time.perf_counter()
            if now - logged > SECONDS_BETWEEN_LINES:
                left, logged = (now - start) / done * (len(own) - done), now
                logger.info("transferability: %d of %d images, about %.0f s left", done, len(own), left)


def _fingerprint(cfg: CfgNode, weights: str) -> str:
    """Return a name for all that T depends on: the file of the weights and the settings."""
    settings: dict[str, Any] = {key: cfg.MODEL.TMT[key] for key in ESTIMATOR_KEYS}
    settings |= {key: get_key(cfg, key) for key in KEYS}
    for key, node in cfg.MODEL.items():  # a user's own backbone may read any other section
        if key not in ("WEIGHTS", "DEVICE", "META_ARCHITECTURE", "MASK_FORMER", "TMT"):
            settings[f"MODEL.{key}"] = node.dump() if isinstance(node, CfgNode) else node
    digest = sha256_of(weights)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:16]
