"""ACTE: adaptive regions (Eqs. 6-9), one domain discriminator per level (Eqs. 2-5, 10), and the transferability of
every position (Eq. 11)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmt_d2.transferability.clustering import Regions, adaptive_clustering
from tmt_d2.transferability.discriminator import Discriminator
from tmt_d2.transferability.map import LevelTransferability
from tmt_d2.transferability.settings import decode_settings, encode_settings, refuse_other_settings

FROZEN_ENCODER = {  # prefixes of the model's own parts and of their frozen copies in a state dict
    "backbone.": "transferability.backbone.",
    "sem_seg_head.pixel_decoder.": "transferability.pixel_decoder.",
}


class TransferabilityEstimator(nn.Module):
    """Regions and discriminators of all levels; ``transferability.*`` in the state dict, with the settings."""

    def __init__(
        self,
        *,
        channels: int,
        cell_sizes: Sequence[int],
        iterations: int,
        kappa: float,
        regions: str,
        hidden_dim: int,
        normalize: bool,
        features: str = "live",
        frozen_encoder: tuple[nn.Module, nn.Module] | None = None,
    ):
        """
        Args:
            channels: C of the levels. cell_sizes: c of every level. iterations, kappa: of ``adaptive_clustering``.
            regions: "adaptive", or "square": equal patches instead ("w/o ACTE").
            hidden_dim, normalize: of the discriminators. features: MODEL.TMT.FEATURES, for the settings.
            frozen_encoder: (backbone, pixel decoder) of which a frozen copy provides the features; it takes the
                weights of a checkpoint's own backbone and pixel decoder unless the checkpoint has it already.
        """
        super().__init__()
        if regions not in ("adaptive", "square"):
            raise ValueError(f"regions is {regions!r}: choose adaptive or square")
        self.cell_sizes, self.kappa = list(cell_sizes), kappa
        self.iterations = iterations if regions == "adaptive" else 0
        self.settings: dict[str, Any] = {
            "REGIONS": regions,
            "CELL_SIZES": self.cell_sizes,
            "DISCRIMINATOR.HIDDEN_DIM": hidden_dim,
            "DISCRIMINATOR.NORMALIZE": normalize,
            "FEATURES": features,
        }
        if regions == "adaptive":  # squares depend on neither
            self.settings |= {"ITERATIONS": iterations, "KAPPA": kappa}
        self.discriminators = nn.ModuleList(Discriminator(channels, hidden_dim, normalize) for _ in cell_sizes)
        self.backbone = self.pixel_decoder = None
        if frozen_encoder is not None:
            self.backbone, self.pixel_decoder = (
                copy.deepcopy(part).eval().requires_grad_(False) for part in frozen_encoder
            )

    def train(self, mode: bool = True) -> TransferabilityEstimator:
        super().train(mode)
        for part in (self.backbone, self.pixel_decoder):
            if part is not None:
                part.eval()  # frozen includes its normalization statistics
        return self

    def get_extra_state(self) -> Tensor:
        return encode_settings(self.settings)

    def set_extra_state(self, state: Any) -> None:
        """Compare the settings of ``state`` with its own, which are kept.

        Raises:
            UserError: they differ, except in FEATURES, which ``TMTCheckpointer`` compares.
        """
        there = decode_settings(state)
        refuse_other_settings(there | {"FEATURES": self.settings["FEATURES"]}, self.settings, "state dict")

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor] | None:
        """Return the levels of the frozen copy for normalized images (B, 3, H, W); None without a copy."""
        if self.backbone is None or self.pixel_decoder is None:
            return None
        return self.pixel_decoder.levels(self.backbone(images))

    def regions_of(self, level: int, features: Tensor, valid: Tensor | None) -> Regions:
        return adaptive_clustering(features, self.cell_sizes[level], self.iterations, self.kappa, valid)

    def forward(self, levels: Sequence[Tensor], valid: Sequence[Tensor] | None) -> list[LevelTransferability]:
        """levels: (B, C, H, W) each; valid: (B, H, W) bool each, False = padding, or None."""
        if len(levels) != len(self.cell_sizes):
            raise ValueError(f"{len(levels)} levels given, MODEL.TMT.CELL_SIZES has {len(self.cell_sizes)} entries")
        results = []
        for level, features in enumerate(levels):
            level_valid = None if valid is None else valid[level]
            regions = self.regions_of(level, features, level_valid)
            region_logits = self.region_logits(level, regions)
            flat = region_logits.flatten(1)
            logits = flat.gather(1, regions.index.clamp(min=0).flatten(1)).view_as(regions.index)
            if level_valid is None:
                level_valid = torch.ones_like(regions.index, dtype=torch.bool)
            logits = logits.masked_fill(~level_valid, 0)
            results.append(LevelTransferability(logits, level_valid, regions, region_logits))
        return results

    def region_logits(self, level: int, regions: Regions) -> Tensor:
        """(B, R, S) float32, logit of E(f(r)) (Eq. 10)."""
        with torch.autocast(regions.centers.device.type, enabled=False):
            return self.discriminators[level](regions.centers.permute(0, 2, 3, 1))


def fill_frozen_encoder(state: dict[str, Any]) -> Mapping[str, Any]:
    """Fill missing entries of the frozen copy from the model's own backbone and pixel decoder."""
    added = {
        target + name[len(source) :]: value
        for source, target in FROZEN_ENCODER.items()
        for name, value in state.items()
        if name.startswith(source)
    }
    return {**added, **state}
