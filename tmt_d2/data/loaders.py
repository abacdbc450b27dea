"""Batches: of one split with a share of its labels, or balanced between a source and a target split."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from tmt_d2.data.reader import DataError
from tmt_d2.data.registration import records_of
from tmt_d2.errors import UserError
from tmt_d2.randomness import derived_seed, seeded

logger = logging.getLogger(__name__)

SOURCE_DOMAIN = 0  # label of the domain discriminators: E is the probability of the target
TARGET_DOMAIN = 1
UNREADABLE = (DataError, OSError, cv2.error)  # what a mapper raises for a record that cannot be read
MAX_REPLACEMENTS = 10  # unreadable records in a row; with 5 % of them this happens once in 10**13 samples

Record = dict[str, Any]
Mapper = Callable[[Record], Mapping[str, Any]]


def label_subset(records: Sequence[Record], fraction: float, seed: int) -> list[Record]:
    """A fixed share of the records, at least one: a smaller share with the same seed lies inside a larger one.

    The choice depends on the data sets' names and image ids only, not on the order of the records.

    Raises:
        UserError: ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"TRANSFER.LABEL_FRACTION={fraction}: must be above 0 and at most 1, e.g. 0.125")
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
    """Endless shuffled batches of the registered splits ``names``; see ``StepSampler`` for their order.

    Args:
        batch_size: images per step over all processes.
        label_fraction: share of the images that may be used (see ``label_subset``).
        subset_seed: chooses them; apart from ``seed``, so that repeated runs share the subset.
        seed: of the order and of the augmentation; None draws one.

    Raises:
        UserError: the processes cannot share ``batch_size`` equally.
    """
    records = records_of(names)
    chosen = label_subset(records, label_fraction, subset_seed)
    logger.info("%s: %d of %d training images", ", ".join(names), len(chosen), len(records))
    return _loader(chosen, mapper, StepSampler([range(len(chosen))], batch_size, seed), num_workers)


def build_paired_loader(
    source_names: Sequence[str],
    target_names: Sequence[str],
    mapper: Mapper,
    batch_size: int,
    *,
    label_fraction: float = 1.0,
    subset_seed: int = 0,
    seed: int | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Endless batches that are half source, half target; each item says which in ``domain``.

    Args: as of ``build_train_loader``; label_fraction: of the target images.

    Raises:
        UserError: a process's share of ``batch_size`` is odd.
    """
    sources = [record | {"domain": SOURCE_DOMAIN} for record in records_of(source_names)]
    targets = label_subset(records_of(target_names), label_fraction, subset_seed)
    targets = [record | {"domain": TARGET_DOMAIN} for record in targets]
    logger.info("pairs of %d source and %d target images", len(sources), len(targets))
    groups = [range(len(sources)), range(len(sources), len(sources) + len(targets))]
    return _loader(sources + targets, mapper, StepSampler(groups, batch_size, seed), num_workers)


@dataclass(frozen=True)
class Draw:
    """One sample to make: the record's index, the seed of its random draws, and the records it may be replaced by."""

    index: int
    seed: int
    group: range


class StepSampler:
    """What this process reads in each step: a function of (seed, step) that no earlier step need be asked for.

    The groups (one, or source and target) alternate within a batch; each is shuffled anew every time round. All
    processes together read what a single one would.

    Attributes:
        seed: of the whole run; a resumed run sets it to that of its first sitting.
        first_step: where iteration starts.
    """

    def __init__(self, groups: Sequence[range], batch_size: int, seed: int | None) -> None:
        """
        Args:
            groups: indices of the records of each group. batch_size: images per step over all processes.
        """
        self.rank, self.processes = comm.get_rank(), comm.get_world_size()
        multiple = len(groups) * self.processes
        if batch_size < 1 or batch_size % multiple:
            what = "be half source, half target in each of" if len(groups) > 1 else "be shared equally by"
            raise UserError(
                f"batch size {batch_size} cannot {what} {self.processes} process(es): use a multiple of {multiple}"
            )
        self.groups = groups
        self.per_group = batch_size // len(groups)
        self.seed = comm.shared_random_seed() if seed is None else seed
        self.first_step = 0
        self._orders: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def __iter__(self) -> Iterator[list[Draw]]:
        return (self.batch(step) for step in itertools.count(self.first_step))

    def batch(self, step: int) -> list[Draw]:
        positions = range(step * self.per_group + self.rank, (step + 1) * self.per_group, self.processes)
        return [self._draw(group, position) for position in positions for group in range(len(self.groups))]

    def _draw(self, group: int, position: int) -> Draw:
        records = self.groups[group]
        epoch, place = divmod(position, len(records))
        known_for, order = self._orders.get(group, (None, None))
        if known_for != (self.seed, epoch):
            order = np.random.default_rng((self.seed, group, epoch)).permutation(len(records))
            self._orders[group] = (self.seed, epoch), order
        return Draw(records[int(order[place])], derived_seed(self.seed, group, position), records)


class MappedRecords(Dataset):
    """``Draw`` -> the mapped record with its ``seed``. A record that cannot be read is replaced by another one.

    What was replaced stands in the sample's ``bad_samples``, {file name: reason}; the trainer counts them.
    """

    def __init__(self, records: list[Record], mapper: Mapper) -> None:
        self.records = DatasetFromList(records, copy=False)  # packed: workers share its memory
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Record:
        bad: dict[str, str] = {}
        index = draw.index
        for attempt in range(MAX_REPLACEMENTS):
            record = self.records[index]
            try:
                with seeded(draw.seed, attempt):
                    sample = dict(self.mapper(record))
            except UNREADABLE as error:
                bad[str(record["file_name"])] = " ".join(str(error).split())
                index = draw.group[derived_seed(draw.seed, attempt, 1) % len(draw.group)]
            else:
                return sample | {"seed": draw.seed} | ({"bad_samples": bad} if bad else {})
        raise DataError(
            f"{MAX_REPLACEMENTS} training images in a row cannot be used; the first: {next(iter(bad.values()))}"
        )


def _loader(records: list[Record], mapper: Mapper, sampler: StepSampler, num_workers: int) -> DataLoader:
    return DataLoader(
        MappedRecords(records, mapper),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_list,
        worker_init_fn=_outlive_stop_signals,
        generator=torch.Generator(),  # else starting to read would draw from the global one
        persistent_workers=num_workers > 0,
    )


def _as_list(samples: list[Record]) -> list[Record]:
    return samples


def _outlive_stop_signals(worker: int) -> None:
    """A signal to all processes asks the trainer to stop, which needs its workers until then; only it may end them."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trainer = os.getppid()

    def wait_for_the_trainer() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_the_trainer, daemon=True).start()
