"""Estimators of accuracy without target labels, one class each, fitted on labeled source images.

Each returns the probability of every class at every pixel. Letters as in ``sample``.

Confidence falls less than accuracy when the domain changes. Transferability knows how unlike the source an image is,
but little of which of its pixels are wrong. Hence the level of an image may come from either, and its distribution over
pixels comes from confidence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tmt_d2.errors import UserError
from tmt_d2.estimation.calibration import class_temperatures, matching_temperature, tempered
from tmt_d2.estimation.sample import EPS, PixelSample
from tmt_d2.utils.files import read_json

AMPLIFICATION = 1.7  # of a fall of confidence; chosen on pairs of domains with labels (docs/results.md)
VERSION = 3  # of the estimates: raise it where they change, for files made from them
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
class AmplifiedConfidence(Confidence):
    """Confidence whose fall against the source is amplified: after a change of domain accuracy falls further.

    With c the mean calibrated confidence of an image and a the accuracy on the source, the accuracy of the image is
    estimated as sigmoid(logit a + AMPLIFICATION (logit c - logit a)), and the probabilities of the image get the
    temperature at which their mean confidence is this accuracy.

    source_accuracy: a.
    """

    name = "amplified-confidence"
    source_accuracy: float

    @classmethod
    def fit(cls, source: PixelSample) -> AmplifiedConfidence:
        has_label, correct = source.labeled()
        return cls(class_temperatures(source), float(correct[has_label].float().mean()))

    def temperatures(self, sample: PixelSample) -> Tensor:
        of_classes = super().temperatures(sample)
        calibrated = _tempered(sample, of_classes)
        accuracy = (_logit(self.source_accuracy) + self.change(sample, calibrated.amax(-1).mean(1))).sigmoid()
        return of_classes * matching_temperature(calibrated, accuracy)[:, None]

    def change(self, sample: PixelSample, confidence: Tensor) -> Tensor:
        """Return logit accuracy - logit a of every image, (n,). confidence: (n,), calibrated."""
        return AMPLIFICATION * (_logit(confidence) - _logit(self.source_accuracy))


@dataclass(frozen=True)
class Transferability(AmplifiedConfidence):
    """The larger of two losses of accuracy: by amplified confidence, and by transferability.

    Each is blind to some changes of domain. By transferability the accuracy of an image is the mean over its pixels of
    a logistic regression of correct predictions on the logits of E, fitted on source images. It holds for a model that
    was trained on the source alone; for one trained on the target, E does not tell what is unusual.

    accuracy_of_domain: logits of E at a pixel -> probability that its prediction is right.
    """

    name = "transferability"
    accuracy_of_domain: LogisticRegression

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
        return cls(class_temperatures(source), float(correct[has_label].float().mean()), regression)

    def change(self, sample: PixelSample, confidence: Tensor) -> Tensor:
        assert sample.domain is not None
        by_domain = _logit(self.accuracy_of_domain(sample.domain).mean(1)) - _logit(self.source_accuracy)
        return torch.minimum(super().change(sample, confidence), by_domain)


def default_estimator(has_domain: bool, adapted: bool) -> type[Confidence]:
    """Return the estimator to use.

    Args:
        has_domain: the model outputs transferability. adapted: it was trained on images of the target.
    """
    if adapted:
        return Confidence
    return Transferability if has_domain else AmplifiedConfidence


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
    values: dict[str, Any] = {"estimator": estimator.name}
    values["temperatures"] = dict(zip(classes, estimator.class_temperatures.tolist()))
    if isinstance(estimator, AmplifiedConfidence):
        values["source_accuracy"] = estimator.source_accuracy
    if isinstance(estimator, Transferability):
        values["domain"] = {name: value.tolist() for name, value in vars(estimator.accuracy_of_domain).items()}
    return values


def read_calibration(path: str | Path, classes: Sequence[str], has_domain: bool) -> Confidence:
    """Read an estimator that ``encode`` has written.

    Args:
        has_domain: the model outputs transferability.

    Raises:
        UserError: it is of a model with other classes, or of one with transferability while this one outputs none.
    """
    values = read_json(path, ["estimator", "temperatures"])
    if list(values["temperatures"]) != list(classes):
        raise UserError("it is of a model with other classes", key=path, hint="write it with tools/estimate.py")
    temperatures = torch.tensor([*values["temperatures"].values()])
    if values["estimator"] == Confidence.name:
        return Confidence(temperatures)
    if values["estimator"] == AmplifiedConfidence.name:
        return AmplifiedConfidence(temperatures, values["source_accuracy"])
    if not has_domain:
        raise UserError("the model outputs no transferability", key=path, hint="write it with tools/estimate.py")
    regression = LogisticRegression(
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in values["domain"].items()}
    )
    return Transferability(temperatures, values["source_accuracy"], regression)


def _tempered(sample: PixelSample, temperatures: Tensor) -> Tensor:
    return tempered(sample.probabilities, temperatures.gather(1, sample.predicted)[..., None])


def _logit(p: Tensor | float) -> Tensor:
    return torch.as_tensor(p).clamp(EPS, 1 - EPS).logit()
