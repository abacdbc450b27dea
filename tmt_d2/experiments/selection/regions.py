"""Which parts of pictures to label: ACTE's regions (Eqs. 6-9 of arXiv 2504.05774), the most uncertain first.

Letters: R regions of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor
from tqdm import tqdm

from tmt_d2.data.mapper import model_input
from tmt_d2.data.reader import read_image_of
from tmt_d2.deployment.predictor import Predictor
from tmt_d2.experiments.selection.pool import Pool
from tmt_d2.methods.self_training.pseudo_labels import marginals
from tmt_d2.modeling.mask_former import Pass, valid_positions
from tmt_d2.transferability.clustering import Regions, adaptive_clustering


class RegionEntropy(NamedTuple):
    """Of the regions of a picture. areas: (R,), shares of its pixels, that sum to 1. means: (R,) of the entropy over
    each region; -inf where it has no pixel."""

    areas: np.ndarray
    means: np.ndarray


class UncertainRegions:
    """A model, asked for the part of a picture to label: of each picture by itself, unless pictures compete."""

    def __init__(self, predictor: Predictor, share: float, *, cell_size: int, iterations: int, kappa: float) -> None:
        """
        Args:
            share: of a picture's pixels, at most; of pictures that compete in the mean.
            cell_size, iterations, kappa: of ``adaptive_clustering``, on the finest level; a model with an estimator has
                regions of its own.
        """
        self.predictor, self.share = predictor, share
        self.cell_size, self.iterations, self.kappa = cell_size, iterations, kappa
        self.chosen: dict[int, np.ndarray] = {}  # indices of regions, by picture of the pool; of those that competed

    def compete(self, pool: Pool, indices: Sequence[int]) -> list[int]:
        """Those of the pictures of the pool, in their order, that have any of the most uncertain regions of them all.

        Looks at one picture after the other; two numbers a region remain.
        """
        entropies = []
        for index in tqdm(indices, unit="picture", desc="regions"):
            pixels = read_image_of({"file_name": pool.files[index]}, self.predictor.image_format)
            entropies.append(region_entropy(*self._ask(pixels)))
        self.chosen = dict(zip(indices, most_uncertain(entropies, self.share)))
        return [index for index in indices if len(self.chosen[index])]

    def __call__(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """index: of the picture in the pool. (H, W, 3) uint8 in the model's channel order -> (H, W) bool, True = to be
        labelled."""
        regions, entropy = self._ask(pixels)
        if index in self.chosen:
            return np.isin(regions, self.chosen[index])
        (chosen,) = most_uncertain([region_entropy(regions, entropy)], self.share)
        return np.isin(regions, chosen)

    @torch.no_grad()
    def _ask(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 -> which region each pixel belongs to, (H, W) int64 >= 0, and its entropy, (H, W)."""
        model = self.predictor.model
        images = model.preprocess([model_input(pixels, self.predictor.min_size, self.predictor.max_size)])
        passed = model.run(images)
        regions = self._regions(images, passed)
        entropy = torch.special.entr(marginals(passed.outputs)).sum(1)

        def at_size(maps: Tensor) -> np.ndarray:
            """(1, h, w), with padding -> (H, W), each pixel the value of the position that it lies in."""
            height, width = images.image_sizes[0]
            padded = F.interpolate(maps[None].double(), images.tensor.shape[-2:], mode="nearest-exact")
            real = F.interpolate(padded[..., :height, :width], pixels.shape[:2], mode="nearest-exact")
            return real[0, 0].cpu().numpy()

        return at_size(regions.index).astype(np.int64), at_size(entropy)

    def _regions(self, images: ImageList, passed: Pass) -> Regions:
        """Of the finest level."""
        maps = getattr(passed, "transferability", None)
        if maps:
            return maps[-1].regions
        levels = passed.inputs.levels
        valid = valid_positions(images, levels)
        return adaptive_clustering(
            levels[-1], self.cell_size, self.iterations, self.kappa, None if valid is None else valid[-1]
        )


def region_entropy(regions: np.ndarray, entropy: np.ndarray) -> RegionEntropy:
    """regions: (H, W) int64 >= 0, which one each pixel belongs to. entropy: (H, W)."""
    sizes, sums = np.bincount(regions.ravel()), np.bincount(regions.ravel(), entropy.ravel())
    means = np.divide(sums, sizes, out=np.full(len(sizes), -np.inf), where=sizes > 0)
    return RegionEntropy(sizes / regions.size, means)


def most_uncertain(pictures: Sequence[RegionEntropy], share: float) -> list[np.ndarray]:
    """Of each picture the indices of its regions, ascending, that are among those of the highest mean entropy of all:
    as many as fit into ``share`` times the number of pictures, but at least one."""
    areas, means = (np.concatenate(each) for each in zip(*pictures))
    order = np.argsort(-means, kind="stable")
    fits = np.cumsum(areas[order]) <= share * len(pictures) + 1e-9  # of rounding
    fits[0] = True
    chosen = np.zeros(len(areas), bool)
    chosen[order[fits]] = True
    ends = np.cumsum([len(each.areas) for each in pictures])
    return [np.flatnonzero(each) for each in np.split(chosen & (areas > 0), ends[:-1])]
