"""Which parts of a picture to label: ACTE's regions (Eqs. 6-9 of arXiv 2504.05774), the most uncertain first."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor

from tmt_d2.data.mapper import model_input
from tmt_d2.deployment.predictor import Predictor
from tmt_d2.methods.self_training.pseudo_labels import marginals
from tmt_d2.modeling.mask_former import Pass, valid_positions
from tmt_d2.transferability.clustering import Regions, adaptive_clustering


class UncertainRegions:
    """A model, asked for the part of a picture to label."""

    def __init__(self, predictor: Predictor, share: float, *, cell_size: int, iterations: int, kappa: float) -> None:
        """
        Args:
            share: of a picture's pixels, at most.
            cell_size, iterations, kappa: of ``adaptive_clustering``, on the finest level; a model with an estimator has
                regions of its own.
        """
        self.predictor, self.share = predictor, share
        self.cell_size, self.iterations, self.kappa = cell_size, iterations, kappa

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 in the model's channel order -> (H, W) bool, True = to be labelled."""
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

        return most_uncertain(at_size(regions.index).astype(np.int64), at_size(entropy), self.share)

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


def most_uncertain(regions: np.ndarray, entropy: np.ndarray, share: float) -> np.ndarray:
    """Regions of the highest mean entropy, as many as fit into a share of all pixels, but at least one.

    regions: (H, W) int64 >= 0, which one each pixel belongs to. entropy: (H, W) -> (H, W) bool.
    """
    sizes, sums = np.bincount(regions.ravel()), np.bincount(regions.ravel(), entropy.ravel())
    means = np.divide(sums, sizes, out=np.full(len(sizes), -np.inf), where=sizes > 0)
    order = np.argsort(-means, kind="stable")
    fits = np.cumsum(sizes[order]) <= share * regions.size
    fits[0] = True
    return np.isin(regions, order[fits])
