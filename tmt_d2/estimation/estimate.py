"""An estimate of mIoU and of the accuracy of each image, with an interval. Letters as in ``sample``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from tmt_d2.adaptation import task_of
from tmt_d2.data.datasets.label_spaces import class_list_of
from tmt_d2.data.datasets.registration import labeled_records, records_of
from tmt_d2.estimation.collect import Collector, spread
from tmt_d2.estimation.estimators import AccuracyEstimator, default_estimator
from tmt_d2.estimation.sample import EPS, PixelSample
from tmt_d2.evaluation.semantic import ESTIMATED, confusion_matrix, metrics
from tmt_d2.modeling.mask_former import MaskFormer

LEAST_SHARE = 1e-3  # of all pixels: a class that is expected in fewer does not count in mIoU
RESAMPLINGS = 200
LEVEL = 0.9  # of the interval
# Error of an estimated mIoU: a share of the estimated loss, and percent points; chosen on pairs of domains with labels.
MODEL_ERROR, LEAST_ERROR = 0.4, 3.0


def soft_confusion(probabilities: Tensor, predicted: Tensor) -> Tensor:
    """Return the expected confusion matrix of each image, (n, K, K), row = true class, column = predicted class.

    Args:
        probabilities: (n, P, K). predicted: (n, P) long.

    Returns:
        shares of the image's pixels, which sum to 1.
    """
    one_hot = torch.nn.functional.one_hot(predicted, probabilities.shape[-1]).to(probabilities)
    return torch.einsum("npj,npk->njk", probabilities, one_hot) / predicted.shape[1]


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Expected confusion matrices of n images.

    Attributes:
        classes: names of the K classes.
        confusions: (n, K, K) float32, see ``soft_confusion``.
        known: (K,) bool, classes that occur in the labels of the source; others do not count.
        source: mIoU on the source images that the estimator was fitted on.
    """

    classes: Sequence[str]
    confusions: np.ndarray
    known: np.ndarray
    source: float

    def __len__(self) -> int:
        return len(self.confusions)

    @property
    def accuracy(self) -> np.ndarray:
        """(n,) in [0, 1], share of the pixels of each image that are expected to be right."""
        return np.trace(self.confusions, axis1=1, axis2=2)

    def metrics(self) -> dict[str, float]:
        """Return the expected metrics in percent by the names of ``evaluation.semantic.metrics``."""
        return self._metrics(self.confusions.sum(0))

    def interval(self, name: str, seed: int = 0) -> Interval:
        """Return the interval that holds the metric with a probability of about ``LEVEL``.

        Its two parts are added in squares: the choice of images, by a bootstrap over them, and the error of the
        estimator, ``MODEL_ERROR`` of the estimated loss against the source but at least ``LEAST_ERROR``.
        """
        value = self.metrics()[name]
        draws = np.random.default_rng(seed).integers(len(self.confusions), size=(RESAMPLINGS, len(self.confusions)))
        weights = np.stack([np.bincount(draw, minlength=len(self.confusions)) for draw in draws])
        sums = np.tensordot(weights, self.confusions, 1)
        values = [self._metrics(each)[name] for each in sums]
        low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        lost = max(0.0, self.source - self.metrics()["mIoU"])
        error = max(LEAST_ERROR, MODEL_ERROR * lost)
        below, above = np.hypot(max(0.0, value - low), error), np.hypot(max(0.0, high - value), error)
        return Interval(float(max(0.0, value - below)), float(min(100.0, value + above)))

    def _metrics(self, confusion: np.ndarray) -> dict[str, float]:
        """As ``evaluation.semantic.metrics``; classes that are expected in less than ``LEAST_SHARE`` do not count."""
        counted = self.known & (confusion.sum(1) >= LEAST_SHARE * confusion.sum())
        return metrics(np.where(counted[:, None], confusion, 0), self.classes)


class Estimation:
    """An estimator fitted on labeled source images.

    Attributes:
        classes: names of the K classes. source: the measured metrics of those images. known: as in ``Estimate``.
    """

    def __init__(
        self,
        source: PixelSample,
        classes: Sequence[str],
        estimator: type[AccuracyEstimator] | None = None,
        adapted: bool = False,
    ) -> None:
        """estimator: by default ``default_estimator``. adapted: the model was trained on images of the target."""
        self.estimator = (estimator or default_estimator(source.domain is not None, adapted)).fit(source)
        self.classes = classes
        has_label, _ = source.labeled()
        assert source.truth is not None
        truth, predicted = source.truth[has_label], source.predicted[has_label]
        confusion = confusion_matrix(predicted, truth, len(classes)).numpy()
        self.known = confusion.sum(1) > 0
        self.source = metrics(confusion, classes)
        levels = np.zeros((1, 1)) if source.domain is None else source.domain.mean(1).numpy()
        self.range = levels.min(0), levels.max(0)

    def __call__(self, sample: PixelSample) -> Estimate:
        return self.of(soft_confusion(self.estimator.probabilities(sample), sample.predicted).numpy())

    def of(self, confusions: np.ndarray) -> Estimate:
        """confusions: (n, K, K), from an earlier call."""
        return Estimate(self.classes, confusions, self.known, self.source["mIoU"])

    def share_outside(self, domain: np.ndarray) -> float:
        """Return the share of images that have a level outside the range of the source. domain: (n, L), means."""
        low, high = self.range
        return float(((domain < low) | (domain > high)).any(1).mean())


def estimated_metrics(cfg: CfgNode, model: MaskFormer, splits: Sequence[str]) -> dict[str, dict[str, float]]:
    """Estimate the mIoU on registered splits, of which no label is read, from DATASETS.SOURCE_TEST.

    Returns:
        {split: {"estimated", "estimated-low", "estimated-high": the ends of the interval}}
    """
    collect = Collector(cfg, model)
    source = collect.of_records(spread(labeled_records(cfg.DATASETS.SOURCE_TEST)))
    estimation = Estimation(source, class_list_of(model).names, adapted=task_of(cfg).fine_tunes)
    values = {}
    for name in splits:
        estimate = estimation(collect.of_records(spread(records_of([name])), with_labels=False))
        low, high = estimate.interval("mIoU")
        values[name] = {ESTIMATED: estimate.metrics()["mIoU"], f"{ESTIMATED}-low": low, f"{ESTIMATED}-high": high}
    return values


def info_max(mean_probability: np.ndarray, entropy: np.ndarray) -> float:
    """Return the mutual information of image position and class, in nats: it ranks models without any label.

    Entropy of the mean minus mean of the entropy (Krause et al., NeurIPS 2010).

    Args:
        mean_probability: (n, K), of each image. entropy: (n,), mean over the pixels of each image.
    """
    p = np.clip(mean_probability.mean(0), EPS, None)
    return float(-(p * np.log(p)).sum() - entropy.mean())
