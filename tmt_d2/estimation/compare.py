"""Comparison of the estimators with labels of the target, where there are some. Letters as in ``sample``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from tmt_d2.estimation.calibration import calibration_error, risk_coverage
from tmt_d2.estimation.estimate import Estimation
from tmt_d2.estimation.estimators import (
    AccuracyEstimator,
    AmplifiedConfidence,
    Confidence,
    SourceValidation,
    Transferability,
)
from tmt_d2.estimation.sample import PixelSample
from tmt_d2.evaluation.semantic import confusion_matrix, metrics

COVERAGES = torch.tensor([0.5, 0.8, 0.9, 1.0])


def compare(source: PixelSample, target: PixelSample, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each estimator; the target has labels.

    Returns:
        estimated and measured mIoU, interval, mean error of the accuracy of an image, Spearman correlation over images,
        expected calibration error, and the error of the most confident shares ``COVERAGES`` of the pixels.
    """
    has_label, correct = target.labeled()
    assert target.truth is not None
    measured = metrics(
        confusion_matrix(target.predicted[has_label], target.truth[has_label], len(classes)).numpy(), classes
    )
    labeled = has_label.sum(1)
    counted = labeled > 0
    accuracy = ((has_label & correct).sum(1) / labeled.clamp(min=1))[counted].numpy()
    estimators: list[type[AccuracyEstimator]] = [SourceValidation, Confidence, AmplifiedConfidence]
    if target.domain is not None:
        estimators.append(Transferability)
    rows = []
    for kind in estimators:
        estimation = Estimation(source, classes, kind)
        result, confidence = estimation(target), estimation.estimator.probabilities(target).amax(-1)
        of_images = result.accuracy[counted.numpy()]
        errors = risk_coverage(confidence[has_label], correct[has_label], COVERAGES)
        low, high = result.interval("mIoU")
        rows.append(
            {
                "estimator": kind.name,
                "estimated mIoU": result.metrics()["mIoU"],
                "from": low,
                "to": high,
                "measured mIoU": measured["mIoU"],
                "error per image": 100 * float(abs(of_images - accuracy).mean()),
                "Spearman": rank_correlation(torch.from_numpy(of_images), torch.from_numpy(accuracy)),
                "ECE": 100 * calibration_error(confidence[has_label], correct[has_label]),
                **{f"error of {share:.0%}": 100 * float(error) for share, error in zip(COVERAGES, errors)},
            }
        )
    return rows


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's correlation; 0 where it is not defined."""
    if a.unique().numel() < 2 or b.unique().numel() < 2:
        return 0.0
    return float(spearmanr(a, b).statistic)
