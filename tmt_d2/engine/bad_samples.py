"""Training images that could not be read and were replaced: each is named once, and too many of them end the run."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from tmt_d2.data.reader import DataError

logger = logging.getLogger(__name__)


class BadSamples:
    """Attributes: reasons: {file name: why it cannot be used} of all files met so far."""

    def __init__(self, images: int, max_fraction: float):
        """images: in the training set. max_fraction: how many of them may be bad."""
        self.images, self.max_fraction = images, max_fraction
        self.reasons: dict[str, str] = {}

    def note(self, batch: Iterable[dict[str, Any]]) -> None:
        """Take the reasons out of a batch of ``MappedRecords``.

        Raises:
            DataError: more than the allowed fraction of the images is bad.
        """
        for sample in batch:
            for name, reason in sample.pop("bad_samples", {}).items():
                if name not in self.reasons:
                    self.reasons[name] = reason
                    logger.warning("bad sample %d, replaced by another image: %s", len(self.reasons), reason)
        if len(self.reasons) > self.max_fraction * self.images:
            raise DataError(
                f"{len(self.reasons)} of {self.images} training images cannot be used, more than "
                f"DATALOADER.MAX_BAD_FRACTION {self.max_fraction:g} allows; the last: {list(self.reasons.values())[-1]}"
            )

    def summary(self) -> str:
        return f"{len(self.reasons)} of {self.images} training images could not be used and were replaced"
