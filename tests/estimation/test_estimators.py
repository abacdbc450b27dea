"""Estimates of accuracy and mIoU: by hand, and on simulated domains whose accuracy is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference
from torch import Tensor

from tests.helpers.errors import refuses
from tests.helpers.pixel_samples import CLASSES, right, simulated
from tmt_d2.errors import UserError
from tmt_d2.estimation.compare import compare
from tmt_d2.estimation.estimate import Estimate, Estimation, info_max, soft_confusion
from tmt_d2.estimation.estimators import (
    RIDGE,
    AccuracyEstimator,
    AmplifiedConfidence,
    Confidence,
    LogisticRegression,
    SourceValidation,
    Transferability,
    encode,
    read_calibration,
)
from tmt_d2.estimation.sample import PixelSample
from tmt_d2.evaluation.semantic import confusion_matrix, metrics
from tmt_d2.utils.files import write_json

SOURCE_LEVELS = torch.linspace(-2, 2, 40)


def accuracy(kind: type[AccuracyEstimator], source: PixelSample, target: PixelSample) -> Tensor:
    return torch.from_numpy(Estimation(source, CLASSES, kind)(target).accuracy)


def without_labels(sample: PixelSample) -> PixelSample:
    return PixelSample(sample.probabilities, None, sample.domain)


def test_logistic_regression_equals_a_reference() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.3, 3.0, 30.0):
        x = rng.standard_t(3, (400, 3)) * [1, 100, 0.01] + [5, 0, -1]
        y = rng.random(400) < 1 / (1 + np.exp(-scale * (x[:, 0] - 5.5)))
        fitted = LogisticRegression.fit(torch.tensor(x), torch.tensor(y))
        z = (x - x.mean(0)) / x.std(0)
        reference = Reference(C=1 / (RIDGE * len(x)), tol=1e-10, max_iter=10000).fit(z, y)
        assert np.allclose(fitted(torch.tensor(x)).numpy(), reference.predict_proba(z)[:, 1], atol=1e-4)


def test_logistic_regression_with_nothing_to_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator)
    for outcome in (True, False):
        p = LogisticRegression.fit(x, torch.full((300,), outcome))(x)
        assert ((p if outcome else 1 - p) > 0.99).all()
    y = torch.rand(300, generator=generator) < x[:, 0].sigmoid()
    constant = torch.cat([x, torch.full((300, 1), 7.0)], 1)
    fitted = LogisticRegression.fit(constant, y)
    assert torch.allclose(fitted(constant), LogisticRegression.fit(x, y)(x), atol=1e-5)
    elsewhere = torch.cat([x, torch.full((300, 1), -50.0)], 1)
    assert torch.allclose(fitted(elsewhere), fitted(constant), atol=1e-5)
    assert torch.isfinite(LogisticRegression.fit(x[:1], y[:1])(x)).all()


def test_expected_confusions_by_hand() -> None:
    p = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.9, 0.1]]])
    confusions = soft_confusion(p, p.argmax(-1))
    assert torch.allclose(confusions[0], torch.tensor([[0.8, 0.3], [0.2, 0.7]]) / 2)
    assert torch.allclose(confusions[1], torch.tensor([[1.5, 0], [0.5, 0]]) / 2)
    estimate = Estimate("ab", confusions.numpy(), np.array([True, True]), 50.0)
    assert estimate.accuracy.tolist() == pytest.approx([0.75, 0.75])
    assert estimate.metrics()["IoU-a"] == pytest.approx(100 * 2.3 / (2.6 + 3.0 - 2.3))
    assert estimate.metrics()["pACC"] == pytest.approx(75)


def test_the_estimate_is_the_truth_where_probabilities_are_true() -> None:
    source, target = simulated(sharpness=2.0), simulated(sharpness=2.0, images=60, seed=1)
    estimate = Estimation(source, CLASSES)(without_labels(target))
    assert target.truth is not None
    measured = metrics(confusion_matrix(target.predicted, target.truth, 4).numpy(), CLASSES)
    for name, value in estimate.metrics().items():
        assert value == pytest.approx(measured[name], abs=3), name
    assert np.abs(estimate.accuracy - right(target).numpy()).mean() < 0.03
    uncalibrated = soft_confusion(target.probabilities, target.predicted).numpy()  # control
    assert Estimate(CLASSES, uncalibrated, np.ones(4, bool), 0).metrics()["mIoU"] > measured["mIoU"] + 6


def test_source_validation_is_blind_to_a_shift() -> None:
    source = simulated()
    true = (0.4 * source.probabilities.log()).softmax(-1)  # less is known about the target, and the model knows
    truth = torch.multinomial(true.flatten(0, 1), 1, generator=torch.Generator().manual_seed(0))
    target = PixelSample(true, truth.view(source.predicted.shape).to(torch.uint8))
    assert right(target).mean() < right(source).mean() - 0.1
    blind, seeing = (float(accuracy(kind, source, target).mean()) for kind in (SourceValidation, Confidence))
    assert blind == pytest.approx(float(right(source).mean()), abs=0.01)
    assert seeing == pytest.approx(float(right(target).mean()), abs=0.02)
    rows = SourceValidation.fit(source).truth_given_predicted
    assert torch.allclose(rows.sum(1), torch.ones(4)) and (rows.argmax(1) == torch.arange(4)).all()


def test_transferability_follows_the_domain_that_confidence_does_not_see() -> None:
    source = simulated(SOURCE_LEVELS)
    near, far = (without_labels(simulated(SOURCE_LEVELS + shift, seed=1)) for shift in (0, 2))
    measured = right(simulated(SOURCE_LEVELS + 2, seed=1)).mean()
    assert torch.equal(near.probabilities, far.probabilities)
    assert torch.equal(*(accuracy(Confidence, source, each) for each in (near, far)))
    close, away = (accuracy(Transferability, source, each) for each in (near, far))
    assert (away <= close).all() and away.mean() < close.mean() - 0.03
    confident = accuracy(Confidence, source, far).mean()
    assert measured < confident and abs(away.mean() - measured) < abs(confident - measured)
    order = away.argsort(descending=True)
    assert torch.corrcoef(torch.stack([order.argsort().float(), SOURCE_LEVELS]))[0, 1] > 0.7


def test_a_fall_of_confidence_is_amplified() -> None:
    """Equal on the source itself, below a target of lower confidence; T counts only where it sees a larger loss."""
    source = simulated(SOURCE_LEVELS)
    unsure = PixelSample((0.5 * source.probabilities.log()).softmax(-1), None, source.domain)
    for target, equal in ((source, True), (unsure, False)):
        plain, amplified = (accuracy(kind, source, target).mean() for kind in (Confidence, AmplifiedConfidence))
        assert (abs(plain - amplified) < 0.02) == equal and amplified <= plain + 0.02
        assert (accuracy(Transferability, source, target) <= accuracy(AmplifiedConfidence, source, target) + 1e-4).all()


def test_a_domain_that_tells_nothing_changes_nothing() -> None:
    """Negative control: E is constant on the source, whatever it is on the target."""
    flat = simulated(torch.zeros(20))
    source = PixelSample(flat.probabilities, flat.truth, torch.ones(20, 500, 3))
    target = simulated(seed=1)
    here, there = (PixelSample(target.probabilities, None, torch.full((20, 500, 3), value)) for value in (1.0, 9.0))
    assert torch.allclose(*(accuracy(Transferability, source, each) for each in (here, there)), atol=1e-4)


def test_comparison_with_measurements() -> None:
    source, target = simulated(SOURCE_LEVELS), simulated(SOURCE_LEVELS + 2, seed=1)
    rows = {row["estimator"]: row for row in compare(source, target, CLASSES)}
    assert list(rows) == ["source-validation", "confidence", "amplified-confidence", "transferability"]
    assert len({row["measured mIoU"] for row in rows.values()}) == 1
    assert all(row["from"] <= row["estimated mIoU"] <= row["to"] for row in rows.values())
    for name in ("error per image", "ECE"):
        assert rows["transferability"][name] < rows["confidence"][name]
    assert rows["transferability"]["Spearman"] > 0.7
    assert rows["confidence"]["error of 50%"] <= rows["confidence"]["error of 100%"]
    assert target.truth is not None
    partly = PixelSample(target.probabilities, target.truth.clone(), None)
    partly.truth[:3] = 255  # type: ignore[index]
    assert [row["estimator"] for row in compare(source, partly, CLASSES)] == list(rows)[:3]
    assert all(np.isfinite(value) for row in compare(source, partly, CLASSES) for value in list(row.values())[1:])


def test_probabilities_of_an_image_have_its_accuracy_and_predictions() -> None:
    source, target = simulated(SOURCE_LEVELS), simulated(SOURCE_LEVELS[:7] + 1, seed=1)
    estimator = Transferability.fit(source)
    p = estimator.probabilities(target)
    calibrated = Confidence(estimator.class_temperatures).probabilities(target).amax(-1).mean(1)
    source_logit = torch.tensor(estimator.source_accuracy).logit()
    expected = (source_logit + estimator.change(target, calibrated)).sigmoid()
    assert torch.equal(p.argmax(-1), target.predicted)
    assert torch.allclose(p.amax(-1).mean(1), expected, atol=1e-4)
    alone = estimator.probabilities(PixelSample(target.probabilities[3:4], None, target.domain[3:4]))
    assert torch.allclose(alone[0], p[3], atol=1e-5)


def test_the_default_follows_from_the_model() -> None:
    assert Estimation(simulated(), CLASSES).estimator.name == "amplified-confidence"
    assert Estimation(simulated(SOURCE_LEVELS), CLASSES).estimator.name == "transferability"
    assert Estimation(simulated(SOURCE_LEVELS), CLASSES, adapted=True).estimator.name == "confidence"
    with pytest.raises(UserError):
        Transferability.fit(simulated())


def test_classes_without_evidence_do_not_count() -> None:
    source, target = simulated(), without_labels(simulated(seed=1))
    assert source.truth is not None
    three = PixelSample(source.probabilities, source.truth.masked_fill(source.truth == 3, 255))
    values = Estimation(three, CLASSES)(target).metrics()
    assert np.isnan(values["IoU-d"])
    assert values["mIoU"] == pytest.approx(np.mean([values[f"IoU-{name}"] for name in "abc"]))
    almost_never = np.diag([0.5, 0.5, 1e-5]).astype(np.float32)[None]
    assert np.isnan(Estimate("abc", almost_never, np.ones(3, bool), 0).metrics()["IoU-c"])


def test_intervals() -> None:
    source = simulated(SOURCE_LEVELS)
    confusions = Estimation(source, CLASSES)(simulated(torch.tensor([-2.0, 2.0]), seed=1)).confusions
    known = np.ones(4, bool)

    def interval(parts: Sequence[np.ndarray], source: float = 80.0) -> tuple[float, float, float]:
        estimate = Estimate(CLASSES, np.stack(parts), known, source)
        assert estimate.interval("mIoU") == estimate.interval("mIoU")
        low, high = estimate.interval("mIoU")
        value = estimate.metrics()["mIoU"]
        assert 0 <= low < value < high <= 100
        return low, value, high

    few, many = interval(confusions), interval([*confusions] * 40)
    assert few[1] == pytest.approx(many[1]) and few[0] < many[0] and many[2] < few[2]
    interval(confusions[:1])
    nothing = np.full((4, 4), 1 / 16, np.float32)
    interval([nothing])


def test_levels_outside_of_the_source() -> None:
    estimation = Estimation(simulated(SOURCE_LEVELS), CLASSES)
    levels = np.array([[0, 0, 0], [0, 3, 0], [-3, 0, 0], [1, -1, 1]], np.float32)
    assert estimation.share_outside(levels) == 0.5


def test_info_max_by_hand() -> None:
    assert info_max(np.eye(2), np.zeros(2)) == pytest.approx(np.log(2), abs=1e-3)
    assert info_max(np.full((3, 2), 0.5), np.full(3, np.log(2))) == pytest.approx(0, abs=1e-6)
    assert info_max(np.array([[1.0, 0.0]]), np.zeros(1)) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("has_domain", [False, True])
def test_a_file_holds_an_estimator(tmp_path: Path, has_domain: bool) -> None:
    source, target = (simulated(SOURCE_LEVELS if has_domain else None, seed=seed) for seed in (0, 1))
    estimator = Estimation(source, CLASSES).estimator
    assert isinstance(estimator, Confidence)
    file = tmp_path / "calibration.json"
    write_json(file, encode(estimator, CLASSES))
    read = read_calibration(file, CLASSES, True)
    assert type(read) is type(estimator)
    assert torch.allclose(read.probabilities(target), estimator.probabilities(target), atol=1e-6)
    with refuses(str(file)):
        read_calibration(file, CLASSES[::-1], True)
    if has_domain:
        with refuses(str(file)):
            read_calibration(file, CLASSES, False)
    else:
        read_calibration(file, CLASSES, False)
    file.write_text("{}")
    with refuses(str(file)):
        read_calibration(file, CLASSES, True)
