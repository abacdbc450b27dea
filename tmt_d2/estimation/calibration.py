"""Calibrated probabilities: one temperature for each predicted class.

Class-wise temperature scaling (Guo et al., arXiv 1706.04599; by class: Li et al., arXiv 2207.09957). Letters as in
``sample``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tmt_d2.estimation.sample import PixelSample

BINS = 15
FIT_PIXELS = 100_000  # about so many of the labeled pixels are fitted to
LEAST_PIXELS = 200  # a class with fewer predicted pixels has the temperature of all
RANGE = (0.05, 20.0)  # of a temperature
HALVINGS = 24


def tempered(probabilities: Tensor, temperature: Tensor) -> Tensor:
    """Return softmax(log p / temperature) over the last dimension. temperature: (..., 1)."""
    return (probabilities.log() / temperature).softmax(-1)


def class_temperatures(sample: PixelSample) -> Tensor:
    """Return the temperature of every predicted class that minimizes the negative log-likelihood of the labels, (K,).

    It is above 1 where the model is too sure.
    """
    has_label, _ = sample.labeled()
    assert sample.truth is not None
    step = int(has_label.sum()) // FIT_PIXELS + 1
    p, truth, predicted = (each[has_label][::step] for each in (sample.probabilities, sample.truth, sample.predicted))
    temperatures = torch.full((p.shape[-1],), _best_temperature(p, truth))
    for index in range(len(temperatures)):
        chosen = predicted == index
        if chosen.sum() >= LEAST_PIXELS:
            temperatures[index] = _best_temperature(p[chosen], truth[chosen])
    return temperatures


def _best_temperature(probabilities: Tensor, truth: Tensor) -> float:
    """Bisect the derivative of the negative log-likelihood with respect to 1 / temperature, in which it is convex.

    probabilities: (m, K). truth: (m,).
    """
    logits = probabilities.log().double()
    mean_true = logits.gather(1, truth.long()[:, None]).mean()
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        expected = ((logits * middle).softmax(1) * logits).sum(1).mean()
        low, high = (middle, high) if expected < mean_true else (low, middle)
    return 1 / (low * high) ** 0.5


def matching_temperature(probabilities: Tensor, confidence: Tensor) -> Tensor:
    """Return the temperature of each image at which its mean confidence is ``confidence``, within ``RANGE``.

    Args:
        probabilities: (n, P, K). confidence: (n,), the aim for the mean over pixels of the largest probability.

    Returns:
        (n,)
    """
    low, high = (torch.full_like(confidence, value) for value in RANGE)
    for _ in range(HALVINGS):
        middle = (low * high).sqrt()
        too_sure = tempered(probabilities, middle[:, None, None]).amax(-1).mean(-1) > confidence
        low, high = torch.where(too_sure, middle, low), torch.where(too_sure, high, middle)
    return (low * high).sqrt()


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return the expected calibration error over ``BINS`` equal bins (Guo et al.).

    Args:
        confidence: (m,) in [0, 1]. correct: (m,) bool.
    """
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(bins, minlength=BINS)
    gaps = torch.bincount(bins, confidence.double(), BINS) - torch.bincount(bins, correct.double(), BINS)
    return float(gaps.abs().sum() / count.sum())


def risk_coverage(confidence: Tensor, correct: Tensor, shares: Tensor) -> Tensor:
    """Return the error among the most confident pixels, for each share of all pixels, (len(shares),).

    Args:
        confidence: (m,). correct: (m,) bool. shares: in (0, 1]; a part of a pixel counts as one.
    """
    order = confidence.argsort(descending=True)
    errors = (~correct[order]).double().cumsum(0)
    counts = (shares * len(order) * (1 - 1e-6)).ceil().long().clamp(min=1)
    return errors[counts - 1] / counts
