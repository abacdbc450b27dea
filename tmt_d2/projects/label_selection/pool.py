"""Statistics of every image of a pool from one pass of a model, kept in a folder.

Letters: n images, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmt_d2.adaptation.self_training.pseudo_labels import marginals
from tmt_d2.inference.images import InputImages
from tmt_d2.inference.predictor import Predictor
from tmt_d2.inference.statistics import statistics_of
from tmt_d2.modeling.mask_former import real_positions
from tmt_d2.modeling.tmt import output_transferability

FEATURES = ("res4", "res5")


@dataclass(frozen=True)
class Pool:
    """Images and their statistics, one row per image.

    Attributes:
        names, files: of the images.
        features: (n, D) float32, spatial means of the backbone's features, each map's scaled to unit length.
        entropy: (n,) in [0, 1], of the class probabilities, mean over pixels.
        margin: (n,) in [0, 1], between the two most probable classes, mean over pixels.
        classes: (n, K), share of pixels predicted as each class.
        domain: (n,), mean logit of E, high = unlike the source; NaN without an estimator.
        broken: name -> reason, of images that cannot be read.
    """

    names: list[str]
    files: list[str]
    features: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray
    classes: np.ndarray
    domain: np.ndarray
    broken: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


@torch.no_grad()
def image_statistics(predictor: Predictor, pixels: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """(H, W, 3) uint8 RGB arrays of one size -> the arrays of ``Pool``, from one forward pass."""
    model = predictor.model
    images = model.preprocess([predictor.model_input(each) for each in pixels])
    features: dict[str, Tensor] = {}
    hook = model.backbone.register_forward_hook(lambda module, inputs, outputs: features.update(outputs))
    try:
        with output_transferability(model):
            passed = model.run(images)
    finally:
        hook.remove()

    def without_padding(maps: Tensor) -> Tensor:
        rows, columns = real_positions(images.image_sizes[0], images.tensor.shape[-2:], maps.shape[-2:])
        return maps[..., :rows, :columns].float()

    means = [without_padding(features[name]).mean((2, 3)) for name in FEATURES]
    probabilities = without_padding(marginals(passed.outputs))
    count = probabilities.shape[1]
    best = probabilities.topk(2, dim=1)
    entropy = torch.special.entr(probabilities).sum(1).mean((1, 2)) / math.log(count)
    labels = best.indices[:, 0].flatten(1)
    classes = torch.stack([torch.bincount(each, minlength=count) for each in labels]) / labels.shape[1]
    domain = torch.full((len(pixels),), float("nan"))
    levels = getattr(passed, "transferability", None)
    if levels is not None:
        domain = torch.stack([without_padding(level.logits).mean((1, 2)) for level in levels]).mean(0)
    return {
        "features": torch.cat([torch.nn.functional.normalize(mean) for mean in means], 1).cpu().numpy(),
        "entropy": entropy.cpu().numpy(),
        "margin": (best.values[:, 0] - best.values[:, 1]).mean((1, 2)).cpu().numpy(),
        "classes": classes.float().cpu().numpy(),
        "domain": domain.float().cpu().numpy(),
    }


def score_pool(
    predictor: Predictor, images: InputImages, folder: Path, identity: dict[str, Any], batch_size: int = 8
) -> Pool:
    """Return the statistics of all images; files of ``folder`` that are up to date are read instead of computed.

    Args:
        identity: values that the statistics depend on, such as the weights.
        batch_size: maximum number of images in a forward pass.

    Raises:
        UserError: ``folder`` belongs to other images or to another model, or no image can be read.
    """
    found = statistics_of(images, folder, identity, partial(image_statistics, predictor), batch_size)
    return Pool(found.names, found.files, **found.arrays, broken=found.broken)
