"""Estimators of accuracy without target labels, one class each, fitted on labeled source images.

Each returns the probability of every class at every pixel. Letters as in ``sample``.

Confidence falls less than accuracy when the domain changes. Transferability knows how unlike the source an image is,
but little of which of its pixels are wrong. Hence the level of an image comes from both, and its distribution over
pixels from confidence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from scipy.stats import spearmanr
from torch import Tensor

from tmt_d2.errors import UserError
from tmt_d2.estimation.calibration import class_temperatures, matching_temperature, tempered
from tmt_d2.estimation.sample import EPS, PixelSample
from tmt_d2.utils.files import read_json

AMPLIFICATION = 1.9  # of a fall of confidence; chosen on pairs of domains with labels (docs/results.md)
VERSION = 2  # of the estimates: raise it where they change, for files made from them
RIDGE = 1e-3  # of standardized coefficients, for the mean loss of a pixel
NEWTON_STEPS = 20


class AccuracyEstimator(ABC):
    """name: in files and tables."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, source: PixelSample) -> AccuracyEstimator:
        """Fit on labeled source images that the model was not trained on."""

    @abstractmethod
    def probabilities(self, sample: PixelSample) -> Tensor:
        """Return the probability that a pixel is of a class, (n, P, K); the prediction of a pixel stays the same."""


@dataclass(frozen=True)
class SourceValidation(AccuracyEstimator):
    """A predicted class is right as often as on the source: the control that knows nothing of the target.

    truth_given_predicted: (K, K), row = predicted class.
    """

    name = "source-validation"
    truth_given_predicted: Tensor

    @classmethod
    def fit(cls, source: PixelSample) -> SourceValidation:
        has_label, _ = source.labeled()
        assert source.truth is not None
        count = source.probabilities.shape[-1]
        pairs = source.predicted[has_label] * count + source.truth[has_label].long()
        counts = torch.bincount(pairs, minlength=count * count).view(count, count).float() + torch.eye(count)
        return cls(counts / counts.sum(1, keepdim=True))

    def probabilities(self, sample: PixelSample) -> Tensor:
        return self.truth_given_predicted[sample.predicted]


@dataclass(frozen=True)
class Confidence(AccuracyEstimator):
    """The calibrated probabilities themselves: C_jk = sum of p_j over pixels predicted as k (soft IoU).

    class_temperatures: (K,), of each predicted class.
    """

    name = "confidence"
    class_temperatures: Tensor

    @classmethod
    def fit(cls, source: PixelSample) -> Confidence:
        return cls(class_temperatures(source))

    def probabilities(self, sample: PixelSample) -> Tensor:
        return _tempered(sample, self.temperatures(sample))

    def temperatures(self, sample: PixelSample) -> Tensor:
        """Return the temperature of every predicted class in every image, (n, K)."""
        return self.class_temperatures.expand(len(sample), -1)


@dataclass(frozen=True)
class Transferability(Confidence):
    """Level of an image from confidence and transferability, distribution over its pixels from confidence.

    With c the mean calibrated confidence of an image, e the accuracy that its transferability predicts and a the
    accuracy on the source, the accuracy of the image is estimated as

        sigmoid(logit a + (1 - w) AMPLIFICATION (logit c - logit a) + w (logit e - logit a)),

    where w is the rank correlation of e with the accuracy over the images of the source, or 0 if that is negative. A
    logistic regression of c and e on source images would drop e: confidence orders them better, but does not fall with
    the accuracy when the domain changes. The probabilities of the image then get the temperature at which their mean
    confidence is this accuracy.

    accuracy_of_domain: logits of E at a pixel -> probability that its prediction is right. source_accuracy: a.
    weight: w.
    """

    name = "transferability"
    accuracy_of_domain: LogisticRegression
    source_accuracy: Tensor
    weight: float

    @classmethod
    def fit(cls, source: PixelSample) -> Transferability:
        """
        Raises:
            UserError: the model has no discriminators.
        """
        if source.domain is None:
            raise UserError("the model has no domain discriminators", hint="train them with --method estimator")
        has_label, correct = source.labeled()
        regression = LogisticRegression.fit(source.domain[has_label], correct[has_label])
        labeled = has_label.sum(1)
        accuracy = ((has_label & correct).sum(1) / labeled)[labeled > 0]
        weight = rank_correlation(regression(source.domain).mean(1)[labeled > 0], accuracy)
        return cls(class_temperatures(source), regression, correct[has_label].float().mean(), max(0.0, weight))

    def temperatures(self, sample: PixelSample) -> Tensor:
        of_classes = super().temperatures(sample)
        calibrated = _tempered(sample, of_classes)
        accuracy = self.image_accuracy(sample, calibrated.amax(-1).mean(1))
        return of_classes * matching_temperature(calibrated, accuracy)[:, None]

    def image_accuracy(self, sample: PixelSample, confidence: Tensor) -> Tensor:
        """(n,), see the class. confidence: (n,), calibrated."""
        assert sample.domain is not None
        source = _logit(self.source_accuracy)
        by_confidence = _logit(confidence) - source
        by_domain = _logit(self.accuracy_of_domain(sample.domain).mean(1)) - source
        return (source + (1 - self.weight) * AMPLIFICATION * by_confidence + self.weight * by_domain).sigmoid()


@dataclass(frozen=True)
class LogisticRegression:
    """Probability of a binary outcome from D values.

    mean, scale: (D,), of the values. coefficients: (1 + D,), of the standardized ones, the intercept first.
    """

    mean: Tensor
    scale: Tensor
    coefficients: Tensor

    @classmethod
    def fit(cls, values: Tensor, outcome: Tensor) -> LogisticRegression:
        """Fit by Newton's method with a small ridge. values: (m, D). outcome: (m,) bool."""
        values, outcome = values.double(), outcome.double()
        start = cls(values.mean(0), values.std(0, correction=0).clamp(min=EPS), values.new_zeros(1 + values.shape[1]))
        x, coefficients = start.with_intercept(values), start.coefficients
        ridge = RIDGE * torch.eye(len(coefficients), dtype=torch.float64)
        ridge[0, 0] = 0
        for _ in range(NEWTON_STEPS):
            p = (x @ coefficients).sigmoid()
            gradient = x.T @ (p - outcome) / len(x) + ridge @ coefficients
            curvature = (x.T * (p * (1 - p)).clamp(min=EPS)) @ x / len(x) + ridge
            coefficients = coefficients - torch.linalg.solve(curvature, gradient)
        return cls(start.mean, start.scale, coefficients)

    def __call__(self, values: Tensor) -> Tensor:
        """(..., D) -> (...) float32."""
        return (self.with_intercept(values.double()) @ self.coefficients).sigmoid().float()

    def with_intercept(self, values: Tensor) -> Tensor:
        standardized = (values - self.mean) / self.scale
        return torch.cat([torch.ones_like(standardized[..., :1]), standardized], -1)


def encode(estimator: Confidence, classes: Sequence[str]) -> dict[str, Any]:
    """Return an estimator as values that JSON preserves."""
    values: dict[str, Any] = {"temperatures": dict(zip(classes, estimator.class_temperatures.tolist()))}
    if isinstance(estimator, Transferability):
        values |= {"source_accuracy": float(estimator.source_accuracy), "weight": estimator.weight}
        values["domain"] = {name: value.tolist() for name, value in vars(estimator.accuracy_of_domain).items()}
    return values


def read_calibration(path: str | Path, classes: Sequence[str], has_domain: bool) -> Confidence:
    """Read an estimator that ``encode`` has written.

    Args:
        has_domain: the model outputs transferability.

    Raises:
        UserError: it is of a model with other classes, or of one with transferability while this one outputs none.
    """
    values = read_json(path, ["temperatures"])
    if list(values["temperatures"]) != list(classes):
        raise UserError("it is of a model with other classes", key=path, hint="write it with tools/estimate.py")
    temperatures = torch.tensor([*values["temperatures"].values()])
    if "domain" not in values:
        return Confidence(temperatures)
    if not has_domain:
        raise UserError("the model outputs no transferability", key=path, hint="write it with tools/estimate.py")
    regression = LogisticRegression(
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in values["domain"].items()}
    )
    return Transferability(temperatures, regression, torch.tensor(values["source_accuracy"]), values["weight"])


def _tempered(sample: PixelSample, temperatures: Tensor) -> Tensor:
    return tempered(sample.probabilities, temperatures.gather(1, sample.predicted)[..., None])


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's correlation; 0 where it is not defined."""
    if a.unique().numel() < 2 or b.unique().numel() < 2:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _logit(p: Tensor) -> Tensor:
    return p.clamp(EPS, 1 - EPS).logit()
