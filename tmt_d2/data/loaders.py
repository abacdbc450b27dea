"""Loaders of endless batches of one or several groups: labeled target, unlabeled target and labeled source images."""

from __future__ import annotations

import itertools
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from tmt_d2.data.datasets.registration import labeled_records, records_of
from tmt_d2.data.labeled import LABEL, LabelChoice
from tmt_d2.data.rare_classes import ClassChooser, RareClasses
from tmt_d2.data.reader import UNREADABLE, DataError
from tmt_d2.errors import UserError
from tmt_d2.utils.randomness import derived_seed, seeded

logger = logging.getLogger(__name__)

SOURCE_DOMAIN = 0  # labels of the domain discriminators: E is the probability of the target
TARGET_DOMAIN = 1
MAX_REPLACEMENTS = 10  # unreadable records in a row; if 5 % are unreadable, once in 10**13 samples

Record = dict[str, Any]
Mapper = Callable[[Record], Mapping[str, Any]]


def build_train_loader(
    names: Sequence[str],
    mapper: Mapper,
    batch_size: int,
    *,
    labels: LabelChoice | None = None,
    seed: int | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Build a loader of shuffled batches of the labeled images of registered splits; see ``StepSampler``.

    Args:
        batch_size: images per step over all processes.
        labels: choice of the images; None: all with a label.
        seed: of order and augmentation; None draws one.

    Raises:
        UserError: ``batch_size`` is no multiple of the number of processes.
    """
    _check_processes(batch_size, 1)
    records = records_of(names)
    chosen = (labels or LabelChoice()).of(records)
    logger.info("%s: %d of %d training images", ", ".join(names), len(chosen), len(records))
    return build_group_loader([Group(chosen, batch_size)], mapper, seed, num_workers)


def build_paired_loader(
    source_names: Sequence[str],
    target_names: Sequence[str],
    mapper: Mapper,
    batch_size: int,
    *,
    labels: LabelChoice | None = None,
    seed: int | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Build a loader of batches that are half source, half target, with the ``domain`` of each item.

    Args:
        labels: choice of the target images, source images then need a label too; None: all images, with or without.

    Raises:
        UserError: ``batch_size`` is no multiple of twice the number of processes.
    """
    _check_processes(batch_size, 2)
    sources, targets = records_of(source_names), records_of(target_names)
    if labels is not None:
        sources, targets = labeled_records(source_names), labels.of(targets)
    groups = [_marked(sources, SOURCE_DOMAIN), _marked(targets, TARGET_DOMAIN)]
    logger.info("pairs of %d source and %d target images", *map(len, groups))
    return build_group_loader([Group(records, batch_size // 2) for records in groups], mapper, seed, num_workers)


@dataclass(frozen=True)
class Shares:
    """Images per step of each group, over all processes."""

    labeled: int
    unlabeled: int = 0
    source: int = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Shares:
        """Return SELF_TRAINING.{LABELED,UNLABELED,SOURCE}_RATIO times SOLVER.IMS_PER_BATCH.

        Raises:
            UserError: a product is no whole number, or all are 0.
        """
        images = []
        for key in ("LABELED_RATIO", "UNLABELED_RATIO", "SOURCE_RATIO"):
            share = cfg.SELF_TRAINING[key]
            exact = share * cfg.SOLVER.IMS_PER_BATCH
            if abs(exact - round(exact)) > 0.01:
                message = f"must be a whole number of images, times SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}"
                raise UserError(message, key=f"SELF_TRAINING.{key}", value=share)
            images.append(round(exact))
        if not any(images):
            raise UserError("are all 0", key="SELF_TRAINING.LABELED_RATIO, UNLABELED_RATIO and SOURCE_RATIO")
        return cls(*images)


def build_semi_supervised_loader(
    shares: Shares,
    *,
    target: Sequence[str],
    unlabeled: Sequence[str] = (),
    source: Sequence[str] = (),
    mapper: Mapper,
    labels: LabelChoice,
    rare: RareClasses | None = None,
    seed: int | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Build a loader of labeled target, unlabeled target and labeled source images, in this order within a block.

    Items have ``domain``, and ``labeled``, False where the label must not be read. The unlabeled images are all of
    ``target`` and ``unlabeled``, whether they are also among the labeled ones or not.

    Args:
        shares: images per step of each group over all processes.
        target, unlabeled, source: registered splits.
        rare: rare class sampling of labeled images; None: each once per epoch.

    Raises:
        UserError: a group with a share has no image.
    """
    images = records_of(target)
    chosen = labels.of(images) if shares.labeled else []
    more = records_of(unlabeled) if unlabeled else []
    sources = [record for record in records_of(source) if LABEL in record] if shares.source and source else []
    if shares.unlabeled and len(images) == len(chosen) and not more:
        raise UserError(
            f"there is no unlabeled image: all {len(chosen)} of DATASETS.TRAIN are used with their labels",
            hint="lower TRANSFER.LABEL_COUNT or LABEL_FRACTION, or name splits in DATASETS.UNLABELED",
        )
    if shares.source and not sources:
        hint = "or set SELF_TRAINING.SOURCE_RATIO 0.0"
        raise UserError("has no labeled image", key="DATASETS.SOURCE_TRAIN", value=tuple(source), hint=hint)
    groups = [
        Group(_marked(chosen, TARGET_DOMAIN), shares.labeled, rare.chooser(chosen) if rare and chosen else None),
        Group([record | {"labeled": False} for record in _marked(images + more, TARGET_DOMAIN)], shares.unlabeled),
        Group(_marked(sources, SOURCE_DOMAIN), shares.source, rare.chooser(sources) if rare and sources else None),
    ]
    counts = [f"{group.share} of {len(group.records)}" for group in groups]
    logger.info("images per step: labeled target %s, unlabeled target %s, labeled source %s", *counts)
    return build_group_loader(groups, mapper, seed, num_workers)


@dataclass(frozen=True)
class Group:
    """Records of a batch.

    Attributes:
        share: number per step over all processes.
        chooser: draws them; None: each once per epoch.
    """

    records: list[Record]
    share: int
    chooser: ClassChooser | None = None


def build_group_loader(groups: Sequence[Group], mapper: Mapper, seed: int | None, num_workers: int) -> DataLoader:
    """Build a loader of batches with the share of each group; see ``StepSampler``."""
    ends = list(itertools.accumulate((len(group.records) for group in groups), initial=0))
    places = list(itertools.starmap(range, itertools.pairwise(ends)))
    sampler = StepSampler(places, [group.share for group in groups], seed, [group.chooser for group in groups])
    return _loader([record for group in groups for record in group.records], mapper, sampler, num_workers)


def _check_processes(batch_size: int, groups: int) -> None:
    multiple = groups * comm.get_world_size()
    if batch_size < 1 or batch_size % multiple:
        raise UserError(f"must be a multiple of {multiple}", key="batch size", value=batch_size)


def _marked(records: Sequence[Record], domain: int) -> list[Record]:
    return [record | {"domain": domain} for record in records]


@dataclass(frozen=True)
class Draw:
    """Instruction for one sample.

    Attributes:
        index: of the record. seed: of its augmentation.
        group: indices of the records that may replace it if it is unreadable.
        rare_class: train id that the crop should show, if any.
    """

    index: int
    seed: int
    group: range
    rare_class: int | None = None


class StepSampler:
    """Draws of this process in each step, as a function of (seed, step) alone.

    A batch consists of the smallest blocks that hold every group in the proportion of the shares. Processes and
    micro-batches get whole blocks, so that neighbors in a block, and the images of all processes together, do not
    depend on their number. Each group is shuffled again in every epoch.

    Attributes:
        seed: of the run; a resumed run sets the one it started with.
        first_step: of the iteration.
    """

    def __init__(
        self,
        groups: Sequence[range],
        shares: Sequence[int],
        seed: int | None,
        choosers: Sequence[ClassChooser | None] = (),
    ) -> None:
        """
        Args:
            groups: indices of the records of each group.
            shares: images per step of each group over all processes.
            choosers: of the records of each group; None: shuffled.
        """
        self.choosers = choosers or [None] * len(groups)
        self.rank, self.processes = comm.get_rank(), comm.get_world_size()
        self.groups, self.shares = groups, shares
        self.blocks = math.gcd(*shares)
        if self.blocks < 1 or self.blocks % self.processes:
            raise UserError(
                f"{' + '.join(map(str, shares))} images per step must be multiples of {self.processes} processes",
                hint="change SOLVER.IMS_PER_BATCH, or SELF_TRAINING.LABELED_RATIO, UNLABELED_RATIO and SOURCE_RATIO",
            )
        self.seed = comm.shared_random_seed() if seed is None else seed
        self.first_step = 0
        self._orders: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def __iter__(self) -> Iterator[list[Draw]]:
        return (self.batch(step) for step in itertools.count(self.first_step))

    def batch(self, step: int) -> list[Draw]:
        draws = []
        for block in range(self.rank, self.blocks, self.processes):
            for group, share in enumerate(self.shares):
                size = share // self.blocks
                first = step * share + block * size
                draws += [self._draw(group, position) for position in range(first, first + size)]
        return draws

    def _draw(self, group: int, position: int) -> Draw:
        records, seed = self.groups[group], derived_seed(self.seed, group, position)
        chooser = self.choosers[group]
        if chooser is not None:
            index, rare_class = chooser(self.seed, group, position, 1)
            return Draw(records[index], seed, records, rare_class)
        epoch, place = divmod(position, len(records))
        cached_epoch, order = self._orders.get(group, (None, None))
        if cached_epoch != (self.seed, epoch):
            order = np.random.default_rng((self.seed, group, epoch)).permutation(len(records))
            self._orders[group] = (self.seed, epoch), order
        return Draw(records[int(order[place])], seed, records)


class MappedRecords(Dataset):
    """``Draw`` -> the mapped record with its ``seed``. Unreadable records are replaced by others of their group.

    A sample has the replaced records in ``bad_samples``, {file name: reason}.

    Attributes:
        images: number of different images; an image may be in several groups.
    """

    def __init__(self, records: list[Record], mapper: Mapper) -> None:
        self.images = len({record["file_name"] for record in records})
        self.records = DatasetFromList(records, copy=False)  # packed: workers share its memory
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Record:
        bad: dict[str, str] = {}
        index = draw.index
        for attempt in range(MAX_REPLACEMENTS):
            record = self.records[index]
            if draw.rare_class is not None:
                record = record | {"rare_class": draw.rare_class}
            try:
                with seeded(draw.seed, attempt):
                    sample = dict(self.mapper(record))
            except UNREADABLE as error:
                bad[str(record["file_name"])] = " ".join(str(error).split())
                index = draw.group[derived_seed(draw.seed, attempt, 1) % len(draw.group)]
            else:
                return sample | {"seed": draw.seed} | ({"bad_samples": bad} if bad else {})
        raise DataError(f"{MAX_REPLACEMENTS} training images in a row are unreadable, e.g. {next(iter(bad.values()))}")


def _loader(records: list[Record], mapper: Mapper, sampler: StepSampler, num_workers: int) -> DataLoader:
    return DataLoader(
        MappedRecords(records, mapper),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_list,
        worker_init_fn=_outlive_stop_signals,
        generator=torch.Generator(),  # the default draws from the global one
        persistent_workers=num_workers > 0,
    )


def _as_list(samples: list[Record]) -> list[Record]:
    return samples


def _outlive_stop_signals(worker: int) -> None:
    """Ignore signals to all processes: the trainer, which needs its workers until it stops, ends them itself."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trainer = getattr(multiprocessing.parent_process(), "pid", os.getppid())  # not the server that forks

    def wait_for_the_trainer() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_the_trainer, daemon=True).start()
