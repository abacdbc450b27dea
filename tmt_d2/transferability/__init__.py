"""How transferable is what: regions, discriminators, maps, masks and scores. Pure functions and small modules."""

from .clustering import Regions, adaptive_clustering
from .estimator import Discriminator, LevelTransferability, TransferabilityEstimator, TransferabilityMap
from .mask import transferability_bias, transferability_mask
from .scores import jc_otce, leep, otce, proxy_a_distance

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
    "transferability_bias",
    "transferability_mask",
]
