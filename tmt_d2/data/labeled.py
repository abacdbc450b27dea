"""Which pictures of the target count as labeled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from tmt_d2.data.image_lists import listed_indices
from tmt_d2.errors import UserError

LABEL = "sem_seg_file_name"  # of a record; without it the picture has no label

Record = dict[str, Any]


@dataclass(frozen=True)
class LabelChoice:
    """Which pictures of the target count as labeled: the keys of TRANSFER with these names.

    fraction, count, seed: as of ``label_subset``. file: of names or image ids, one a line, instead; empty: none.
    """

    fraction: float = 1.0
    count: int = 0
    seed: int = 0
    file: str = ""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LabelChoice:
        transfer, seed = cfg.TRANSFER, cfg.TRANSFER.LABEL_SEED
        if seed < 0 and cfg.SEED < 0:
            raise UserError(f"TRANSFER.LABEL_SEED is {seed}, which means SEED, and that is {cfg.SEED}: set one of them")
        all_of_them = {"LABEL_LIST": "", "LABEL_COUNT": 0, "LABEL_FRACTION": 1.0}
        said = [f"{key} {transfer[key]}" for key, every in all_of_them.items() if transfer[key] != every]
        if len(said) > 1:
            raise UserError(f"TRANSFER.{' and '.join(said)} all say which pictures are labeled: set one of them")
        return cls(transfer.LABEL_FRACTION, transfer.LABEL_COUNT, seed if seed >= 0 else cfg.SEED, transfer.LABEL_LIST)

    @property
    def is_limited(self) -> bool:
        return bool(self.file or self.count or self.fraction != 1)

    def of(self, records: Sequence[Record]) -> list[Record]:
        """The chosen ones among the records that have a label, in their order.

        Raises:
            UserError: there is none, or fewer than ``count``, or ``file`` cannot be read or names unknown pictures.
        """
        with_label = [record for record in records if LABEL in record]
        if not with_label:
            raise UserError(f"DATASETS.TRAIN: none of its {len(records)} images has a label")
        if self.file:
            return listed(with_label, self.file)
        return label_subset(with_label, self.fraction, self.seed, self.count)


def label_subset(records: Sequence[Record], fraction: float, seed: int, count: int = 0) -> list[Record]:
    """A fixed share of the records, at least one, or ``count`` of them where that is not 0: with the same seed what is
    smaller lies inside what is larger.

    The choice depends on the data sets' names and image ids only, not on the order of the records.

    Raises:
        UserError: ``fraction`` is not in (0, 1], or there are fewer records than ``count``.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"TRANSFER.LABEL_FRACTION={fraction}: must be above 0 and at most 1, e.g. 0.125")
    if count > len(records):
        raise UserError(f"TRANSFER.LABEL_COUNT is {count}: DATASETS.TRAIN has {len(records)} labeled images")
    by_id = sorted(range(len(records)), key=lambda i: (str(records[i]["dataset"]), str(records[i]["image_id"])))
    shuffled = np.random.default_rng(seed).permutation(by_id)
    chosen = sorted(shuffled[: count or max(1, round(len(records) * fraction))].tolist())
    return [records[i] for i in chosen]


def listed(records: Sequence[Record], file: str) -> list[Record]:
    """Return the records that the lines of a list name, by image id, file name or path; see ``listed_indices``.

    Raises:
        UserError: as ``listed_indices``.
    """
    paths, names = [str(record["file_name"]) for record in records], [[str(each["image_id"])] for each in records]
    return [records[i] for i in listed_indices("TRANSFER.LABEL_LIST", file, paths, names)[0]]
