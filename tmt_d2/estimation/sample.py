"""Predictions of a set of images at a grid of pixels: all that accuracy is estimated from.

Letters: n images, P pixels of each, K classes, L levels of the decoder's pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tmt_d2.data.datasets.label_spaces import IGNORE

SIDE = 48  # P = SIDE * SIDE pixels an image
EPS = 1e-4


@dataclass(frozen=True)
class PixelSample:
    """Predictions at P pixels of each of n images.

    Attributes:
        probabilities: (n, P, K) float32, sums of 1.
        truth: (n, P) uint8, class indices or IGNORE; None without labels.
        domain: (n, P, L) float32, logit of E (Eq. 10), high = unlike the source; None without an estimator.
    """

    probabilities: Tensor
    truth: Tensor | None = None
    domain: Tensor | None = None

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def predicted(self) -> Tensor:
        """(n, P) long, the most probable class."""
        return self.probabilities.argmax(-1)

    def labeled(self) -> tuple[Tensor, Tensor]:
        """Return masks of pixels, (n, P) bool each: those with a label, and those predicted as their label."""
        assert self.truth is not None
        return self.truth != IGNORE, self.truth == self.predicted

    @classmethod
    def concatenate(cls, samples: Sequence[PixelSample]) -> PixelSample:
        def joined(parts: list[Tensor | None]) -> Tensor | None:
            given = [part for part in parts if part is not None]
            return torch.cat(given) if len(given) == len(samples) else None

        return cls(
            torch.cat([each.probabilities for each in samples]),
            joined([each.truth for each in samples]),
            joined([each.domain for each in samples]),
        )

    @classmethod
    def of_image(
        cls, scores: Tensor, transferability: Tensor | None = None, truth: np.ndarray | None = None
    ) -> PixelSample:
        """Sample one image.

        Args:
            scores: (K, h, w), not normalized. transferability: (L, h, w) in [0, 1]. truth: (H, W) uint8.
        """
        domain = None if transferability is None else -at_grid(transferability.float()).clamp(EPS, 1 - EPS).logit()
        return cls(
            normalized(at_grid(scores)).T[None],
            None if truth is None else at_grid(torch.from_numpy(truth)[None])[0][None],
            None if domain is None else domain.T[None],
        )


def normalized(scores: Tensor) -> Tensor:
    """(K, ...) scores -> probabilities of the same shape, float32, none of them 0."""
    positive = scores.float().clamp(min=EPS * EPS)
    return positive / positive.sum(0)


def at_grid(maps: Tensor) -> Tensor:
    """(C, h, w) -> (C, P), the values at the centers of SIDE x SIDE equal cells; the same places at every h and w."""
    centers = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE
    rows, columns = ((centers * length).long() for length in maps.shape[1:])
    return maps[:, rows[:, None], columns].flatten(1)
