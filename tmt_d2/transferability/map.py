"""The transferability map (Eq. 11): T(x, y) = 1 - E(f(r*)) of every position, kept as the logit of E.

Letters: B images, (H, W) a level, (R, S) its grid of regions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tmt_d2.transferability.clustering import Regions
from tmt_d2.transferability.mask import transferability_mask


@dataclass(frozen=True)
class TransferabilityMap:
    """Transferability of the positions of one level.

    logits: (B, H, W) float32, logit of E(f(r*)) of the region each position belongs to; 0 at padding.
    valid: (B, H, W) bool, False = padding.
    """

    logits: Tensor
    valid: Tensor

    def transferable(self, p_t: float) -> Tensor:
        """(B, H, W) bool, True = may be attended to (Eq. 12)."""
        return transferability_mask(self.logits, p_t, self.valid)

    def logits_of(self, image: int, size: tuple[int, int] | None = None) -> Tensor:
        """Return the logits of one image without its padding, (h, w); size: None = from ``valid``."""
        if size is None:
            valid = self.valid[image]
            size = int(valid.any(1).sum()), int(valid.any(0).sum())
        return self.logits[image, : size[0], : size[1]]

    def map_of(self, image: int, size: tuple[int, int] | None = None) -> Tensor:
        """Return T of one image without its padding, (h, w) in [0, 1]; high = like the source (Eq. 11)."""
        return 1 - self.logits_of(image, size).sigmoid()


@dataclass(frozen=True)
class LevelTransferability(TransferabilityMap):
    """Map with the regions on which it was estimated.

    regions: the regions themselves. region_logits: (B, R, S), logit of E(f(r)) (Eq. 10).
    """

    regions: Regions
    region_logits: Tensor
