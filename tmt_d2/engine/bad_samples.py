"""Training images that cannot be read and are replaced: each is logged once, and too many of them end the run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from tmt_d2.data.reader import DataError
from tmt_d2.utils.files import write_json

logger = logging.getLogger(__name__)


class BadSamples:
    """Unreadable training images of a run.

    Attributes:
        reasons: {file name: reason} of all unreadable files so far.
    """

    def __init__(self, images: int, max_fraction: float):
        """images: number in the training set. max_fraction: of them that may be unreadable."""
        self.images, self.max_fraction = images, max_fraction
        self.reasons: dict[str, str] = {}

    def note(self, batch: Iterable[dict[str, Any]]) -> None:
        """Remove the reasons from a batch of ``MappedRecords`` and collect them.

        Raises:
            DataError: more than the allowed fraction of the images is unreadable.
        """
        for sample in batch:
            for name, reason in sample.pop("bad_samples", {}).items():
                if name not in self.reasons:
                    self.reasons[name] = reason
                    logger.warning("bad sample %d, replaced by another image: %s", len(self.reasons), reason)
        if self._are_too_many(self.reasons):
            raise DataError(
                f"{len(self.reasons)} of {self.images} training images cannot be used; the last: "
                f"{list(self.reasons.values())[-1]}",
                key="DATALOADER.MAX_BAD_FRACTION",
                value=self.max_fraction,
            )

    def _are_too_many(self, reasons: Mapping[str, str]) -> bool:
        return len(reasons) > self.max_fraction * self.images

    def restore(self, reasons: Mapping[str, str]) -> None:
        """Continue with the reasons in a checkpoint; after an error of ``note`` without, as files may be repaired."""
        if not self._are_too_many(reasons):
            self.reasons.update(reasons)

    def write_summary(self, folder: str, together: bool = True) -> None:
        """Write the reasons to ``folder/bad_samples.json``, if there are any.

        together: those of all processes, which must call this; otherwise those of this process, the first or one that
            writes ``bad_samples_<rank>.json``.
        """
        for reasons in comm.gather(self.reasons) if together else []:
            self.reasons.update(reasons)
        if self.reasons and (comm.is_main_process() or not together):
            logger.warning("%d of %d training images were unreadable and replaced", len(self.reasons), self.images)
            name = "bad_samples.json" if comm.is_main_process() else f"bad_samples_{comm.get_rank()}.json"
            write_json(Path(folder) / name, self.reasons)
