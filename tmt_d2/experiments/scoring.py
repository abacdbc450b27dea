"""Transferability scores of a source checkpoint for a target set, on labeled pixels and without training.

Letters: N pixels, C channels of the pixel decoder's mask features, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from tmt_d2.adaptation.alignment import class_probabilities, draw_pixels, pixel_features
from tmt_d2.adaptation.estimator import held_out_loader
from tmt_d2.data import register_data
from tmt_d2.data.datasets.registration import label_space_of
from tmt_d2.data.reader import read_label
from tmt_d2.engine.loading import load_model
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.transferability import jc_otce, leep, otce, proxy_a_distance
from tmt_d2.utils.randomness import derived_seed

logger = logging.getLogger(__name__)

SCORES = ("LEEP", "F-OTCE", "JC-OTCE", "PAD")  # higher = more transferable; PAD: lower


class Samples(NamedTuple):
    """features (N, C) float, probabilities (N, K) float, labels (N,) long, images (N,) long: index of the image."""

    features: Tensor
    probabilities: Tensor
    labels: Tensor
    images: Tensor

    def draw(self, number: int, generator: torch.Generator) -> Samples:
        chosen = torch.randperm(len(self.labels), generator=generator)[:number]
        return Samples(*(part[chosen] for part in self))


def score_checkpoint(
    cfg: CfgNode,
    target: Sequence[str],
    source: Sequence[str] = (),
    *,
    images: int = 50,
    pixels: int = 1000,
    draws: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Return the scores of the checkpoint MODEL.WEIGHTS, each the mean over draws.

    Args:
        cfg: of the checkpoint's model. target, source: registered splits with labels.
        images: of each split's set, evenly spread. pixels: labeled pixels per domain and draw; the segmentation
            paper of OTCE takes 10,000 and 10 draws.

    Returns:
        "LEEP", and with ``source`` also "F-OTCE", "JC-OTCE" and "PAD".

    Raises:
        UserError: fewer than two images, or none with a labeled pixel; a checkpoint that cannot be used.
    """
    for name, value, least in (("images", images, 2), ("pixels", pixels, 2), ("draws", draws, 1)):
        if value < least:
            raise UserError(f"must be at least {least}", key=name, value=value)
    register_data(cfg)
    model = load_model(cfg)
    per_image = -(-pixels * draws // images)
    sides = [
        pixel_samples(model, held_out_loader(cfg, names, images, with_label=True), per_image, derived_seed(seed, side))
        for side, names in enumerate((target, source))
        if names
    ]
    return scores(*sides, pixels=pixels, draws=draws, seed=seed)


@torch.no_grad()
def pixel_samples(model: MaskFormer, loader: Iterable[list[dict[str, Any]]], per_image: int, seed: int) -> Samples:
    """Return at most ``per_image`` labeled pixels of every image; loader: batches of one evaluation record."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for index, batch in enumerate(loader):
        images = model.preprocess(batch)
        labeled = [batch[0] | {"sem_seg": _label_of(batch[0], images.image_sizes[0])}]
        labels = model.padded_labels(labeled, images)
        pixels = draw_pixels(labels, per_image, generator)
        result = model.run(images)
        size = images.tensor.shape[-2:]
        features = pixel_features(result.inputs.mask_features, pixels, size)
        parts.append(
            Samples(
                features.float().cpu(),
                class_probabilities(result.outputs, pixels, size).cpu(),
                pixels.label.cpu(),
                torch.full_like(pixels.label, index).cpu(),
            )
        )
    if not sum(len(part.labels) for part in parts):
        raise UserError("no image has a labeled pixel")
    return Samples(*(torch.cat(each) for each in zip(*parts)))


def _label_of(record: Mapping[str, Any], size: Sequence[int]) -> Tensor:
    label = torch.from_numpy(read_label(record["sem_seg_file_name"], label_space_of(record["dataset"])))
    return F.interpolate(label[None, None], size=tuple(size), mode="nearest")[0, 0].long()


def scores(target: Samples, source: Samples | None = None, *, pixels: int, draws: int, seed: int) -> dict[str, float]:
    """Return the means of the scores over ``draws`` draws of ``pixels`` pixels per domain; PAD is of all pixels."""
    values: dict[str, list[float]] = {}
    for index in range(draws):
        generator = torch.Generator().manual_seed(derived_seed(seed, index))
        chosen = target.draw(pixels, generator)
        draw = {"LEEP": leep(chosen.probabilities, chosen.labels)}
        if source is not None:
            other = source.draw(pixels, generator)
            sides = other.features, other.labels, chosen.features, chosen.labels
            draw |= {"F-OTCE": otce(*sides), "JC-OTCE": jc_otce(*sides)}
        for name, value in draw.items():
            values.setdefault(name, []).append(value)
    result = {name: float(np.mean(each)) for name, each in values.items()}
    return result if source is None else result | {"PAD": linear_pad(source, target)}


def linear_pad(source: Samples, target: Samples, weight_decay: float = 1e-3) -> float:
    """Return the proxy A-distance of a logistic regression, trained on every other image and measured on the rest.

    Raises:
        UserError: a domain has a single image.
    """
    features = torch.cat([source.features, target.features])
    features = ((features - features.mean(0)) / features.std(0).clamp(min=1e-6)).double()
    domain = torch.cat([torch.zeros(len(source.labels)), torch.ones(len(target.labels))]).double()
    is_training = torch.cat([source.images, target.images]) % 2 == 0
    if any(not (side & ~is_training).any() for side in (domain == 0, domain == 1)):
        raise UserError("proxy A-distance needs at least two labeled images of each domain")
    weight = torch.zeros(features.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def logits() -> Tensor:
        return features @ weight[:-1] + weight[-1]

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = F.binary_cross_entropy_with_logits(logits(), domain, reduction="none")
        balanced = sum(losses[is_training & (domain == value)].mean() for value in (0, 1)) / 2
        loss = balanced + weight_decay * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    held_out = logits().detach()[~is_training]
    return proxy_a_distance(*(held_out[domain[~is_training] == value] for value in (0, 1)))


def ranked(results: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """Return the checkpoints from the most to the least transferable, by each score that all of them have."""
    common = [name for name in SCORES if all(name in values for values in results.values())]
    return {name: sorted(results, key=lambda key: results[key][name], reverse=name != "PAD") for name in common}
