"""Choice of the target images whose labels may be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from tmt_d2.data.image_lists import first_names, listed_indices
from tmt_d2.errors import UserError

LABEL = "sem_seg_file_name"  # key of a record; absent where the image has no label

Record = dict[str, Any]


@dataclass(frozen=True)
class LabelChoice:
    """The labeled images of the target: TRANSFER.LABEL_{FRACTION,COUNT,SEED,LIST}.

    Attributes:
        fraction, count, seed: as of ``label_subset``.
        file: list of names or image ids, which replaces them; empty for none.
    """

    fraction: float = 1.0
    count: int = 0
    seed: int = 0
    file: str = ""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LabelChoice:
        transfer, seed = cfg.TRANSFER, cfg.TRANSFER.LABEL_SEED
        if seed < 0 and cfg.SEED < 0:
            raise UserError("means SEED, which is below 0, too", key="TRANSFER.LABEL_SEED", value=seed)
        defaults = {"LABEL_LIST": "", "LABEL_COUNT": 0, "LABEL_FRACTION": 1.0}
        chosen = [key for key, default in defaults.items() if transfer[key] != default]
        if len(chosen) > 1:
            key, *others = chosen
            message = f"cannot be combined with TRANSFER.{' and '.join(others)}"
            raise UserError(message, key=f"TRANSFER.{key}", value=transfer[key])
        return cls(transfer.LABEL_FRACTION, transfer.LABEL_COUNT, seed if seed >= 0 else cfg.SEED, transfer.LABEL_LIST)

    @property
    def is_limited(self) -> bool:
        return bool(self.file or self.count or self.fraction != 1)

    def of(self, records: Sequence[Record]) -> list[Record]:
        """Return the chosen records with a label, in their order.

        Raises:
            UserError: there is none, or fewer than ``count``; ``file`` cannot be read, or names an image that is
                unknown or has no label.
        """
        with_label = [record for record in records if LABEL in record]
        if not with_label:
            raise UserError(f"none of {len(records)} images has a label", key="DATASETS.TRAIN")
        if self.file:
            chosen = listed(records, self.file)
            without = [str(record["image_id"]) for record in chosen if LABEL not in record]
            if without:
                message = f"{len(without)} of {len(chosen)} images have no label ({first_names(without)})"
                raise UserError(message, key="TRANSFER.LABEL_LIST", value=self.file)
            return chosen
        return label_subset(with_label, self.fraction, self.seed, self.count)


def label_subset(records: Sequence[Record], fraction: float, seed: int, count: int = 0) -> list[Record]:
    """Return a random subset of ``count`` records, or of a ``fraction`` of them (at least one) where ``count`` is 0.

    It depends on data set names and image ids, not on the order of the records. With the same seed, smaller subsets
    are contained in larger ones.

    Raises:
        UserError: ``fraction`` is not in (0, 1], or there are fewer records than ``count``.
    """
    if not 0 < fraction <= 1:
        raise UserError("must be above 0 and at most 1", key="TRANSFER.LABEL_FRACTION", value=fraction)
    if count > len(records):
        message = f"DATASETS.TRAIN has {len(records)} labeled images"
        raise UserError(message, key="TRANSFER.LABEL_COUNT", value=count)
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
