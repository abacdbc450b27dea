"""Regions, discriminators, transferability maps, masks and scores: pure functions and small modules."""

from tmt_d2.transferability.acte import TransferabilityEstimator
from tmt_d2.transferability.clustering import Regions, adaptive_clustering
from tmt_d2.transferability.discriminator import Discriminator
from tmt_d2.transferability.map import LevelTransferability, TransferabilityMap
from tmt_d2.transferability.mask import transferability_mask
from tmt_d2.transferability.scores import jc_otce, leep, otce, proxy_a_distance

__all__ = [
    "Discriminator",
    "LevelTransferability",
    "Regions",
    "TransferabilityEstimator",
    "TransferabilityMap",
    "adaptive_clustering",
    "jc_otce",
    "leep",
    "otce",
    "proxy_a_distance",
    "transferability_mask",
]
