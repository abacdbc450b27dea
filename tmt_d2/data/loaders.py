"""Batches: of one split with a share of its labels, or balanced between a source and a target split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

logger = logging.getLogger(__name__)

SOURCE_DOMAIN = 0  # label of the domain discriminators: E is the probability of the target
TARGET_DOMAIN = 1

Record = dict[str, Any]
Mapper = Callable[[Record], Mapping[str, Any]]


def label_subset(records: Sequence[Record], fraction: float, seed: int) -> list[Record]:
    """A fixed share of the records, at least one: a smaller share with the same seed lies inside a larger one.

    The choice depends on the data sets' names and image ids only, not on the order of the records.

    Raises:
        ValueError: ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"TRANSFER.LABEL_FRACTION={fraction}: must be above 0 and at most 1, e.g. 0.125")
    by_id = sorted(range(len(records)), key=lambda i: (str(records[i]["dataset"]), str(records[i]["image_id"])))
    shuffled = np.random.default_rng(seed).permutation(by_id)
    chosen = sorted(shuffled[: max(1, round(len(records) * fraction))].tolist())
    return [records[i] for i in chosen]


def build_train_loader(
    names: Sequence[str],
    mapper: Mapper,
    batch_size: int,
    *,
    label_fraction: float = 1.0,
    subset_seed: int = 0,
    seed: int | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Endless shuffled batches of the registered splits ``names``.

    Args:
        batch_size: images per step over all processes.
        label_fraction: share of the images that may be used (see ``label_subset``).
        subset_seed: chooses them; apart from ``seed``, so that repeated runs share the subset.
        seed: of the order and, in workers, of the augmentation; None draws one.
    """
    records = get_detection_dataset_dicts(list(names), filter_empty=False)
    chosen = label_subset(records, label_fraction, subset_seed)
    logger.info("%s: %d of %d training images", ", ".join(names), len(chosen), len(records))
    return _loader(chosen, mapper, TrainingSampler(len(chosen), seed=seed), batch_size, seed, num_workers)


def build_paired_loader(
    source_names: Sequence[str],
    target_names: Sequence[str],
    mapper: Mapper,
    batch_size: int,
    *,
    seed: int | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Endless batches that are half source, half target; each item says which in ``domain``.

    Raises:
        ValueError: a process's share of ``batch_size`` is odd.
    """
    processes = comm.get_world_size()
    if batch_size % (2 * processes):
        raise ValueError(
            f"batch size {batch_size} cannot be half source, half target in each of {processes} process(es): "
            f"use a multiple of {2 * processes}"
        )
    sources = [
        r | {"domain": SOURCE_DOMAIN} for r in get_detection_dataset_dicts(list(source_names), filter_empty=False)
    ]
    targets = [
        r | {"domain": TARGET_DOMAIN} for r in get_detection_dataset_dicts(list(target_names), filter_empty=False)
    ]
    logger.info("pairs of %d source and %d target images", len(sources), len(targets))
    sampler = _AlternatingSampler(len(sources), len(targets), seed)
    return _loader(sources + targets, mapper, sampler, batch_size, seed, num_workers)


class _AlternatingSampler(Sampler):
    """Endless source, target, source, ... indices into sources followed by targets; each domain is shuffled alone."""

    def __init__(self, sources: int, targets: int, seed: int | None) -> None:
        self.offset = sources
        self.sources = TrainingSampler(sources, seed=seed)
        self.targets = TrainingSampler(targets, seed=seed)

    def __iter__(self) -> Iterator[int]:
        for source, target in zip(self.sources, self.targets):
            yield source
            yield self.offset + target


def _loader(
    records: list[Record], mapper: Mapper, sampler: Sampler, batch_size: int, seed: int | None, num_workers: int
) -> DataLoader:
    return build_detection_train_loader(
        records,
        mapper=mapper,
        sampler=sampler,
        total_batch_size=batch_size,
        aspect_ratio_grouping=False,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        # The order is shared by all processes; the augmentation must not be.
        seed=None if seed is None else seed + 1_000_003 * comm.get_rank(),
    )
