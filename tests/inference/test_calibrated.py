"""Predictions with calibrated confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.errors import refuses
from tests.helpers.models import make_records
from tmt_d2.cli import predict
from tmt_d2.estimation.estimators import Confidence, Transferability, encode
from tmt_d2.estimation.sample import PixelSample, at_grid
from tmt_d2.inference import Predictor
from tmt_d2.inference.predictor import Prediction
from tmt_d2.projects.label_selection import command as select_labels
from tmt_d2.utils.files import write_json

pytestmark = pytest.mark.slow


def load(model_files: Path, name: str = "tmt", *opts: str) -> Predictor:
    return Predictor.from_config(str(model_files / f"{name}.yaml"), str(model_files / f"{name}.pth"), opts)


@pytest.fixture
def image() -> np.ndarray:
    (record,) = make_records([(37, 91)])
    return np.ascontiguousarray(record["image"].permute(1, 2, 0).numpy())


def write(path: Path, predictor: Predictor, temperatures: Tensor) -> Path:
    write_json(path, encode(Confidence(temperatures), predictor.classes.names))
    return path


def test_temperatures_of_predicted_classes() -> None:
    scores = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0))
    labels = scores.argmax(0).to(torch.uint8)
    plain = Prediction(labels, scores, None).confidence()
    assert torch.allclose(Prediction(labels, scores, None, torch.ones(3)).confidence(), plain, atol=1e-6)
    of_class = torch.tensor([0.5, 2.0, 3.0])
    calibrated = Prediction(labels, scores, None, of_class).confidence()
    temperatures = of_class[labels.long()]
    powers = (scores / scores.sum(0)) ** (1 / temperatures)  # softmax(log p / temperature)
    assert torch.allclose(calibrated, powers.amax(0) / powers.sum(0), atol=1e-6)
    assert torch.equal(calibrated > plain, temperatures < 1)
    nothing = Prediction(labels, torch.zeros(3, 6, 7), None, of_class).confidence()
    assert torch.allclose(nothing, torch.tensor(1 / 3))


def test_calibration_changes_confidence_alone(model_files: Path, image: np.ndarray, tmp_path: Path) -> None:
    predictor = load(model_files, "full")
    plain = predictor(image)
    predictor.calibrate(write(tmp_path / "twos.json", predictor, torch.full((19,), 2.0)))
    calibrated = predictor(image)
    assert torch.equal(calibrated.labels, plain.labels) and torch.equal(calibrated.scores, plain.scores)
    assert (calibrated.confidence() < plain.confidence()).all()
    first, _ = predictor.batch([image, image[:, ::-1].copy()])
    assert torch.allclose(first.confidence(), calibrated.confidence(), atol=1e-5)


def test_transferability_sets_the_level_of_an_image(model_files: Path, image: np.ndarray, tmp_path: Path) -> None:
    predictor = load(model_files)
    plain = predictor(image)
    sample = PixelSample.of_image(plain.scores, plain.transferability)
    truth = sample.predicted.to(torch.uint8)
    truth[:, ::3] = 18
    estimator = Transferability.fit(PixelSample(sample.probabilities, truth, sample.domain))
    write_json(tmp_path / "calibration.json", encode(estimator, predictor.classes.names))
    predictor.calibrate(tmp_path / "calibration.json")
    calibrated = predictor(image)
    assert torch.equal(calibrated.labels, plain.labels)
    estimated = estimator.probabilities(sample).amax(-1)
    assert torch.allclose(at_grid(calibrated.confidence()[None]), estimated, atol=1e-4)
    assert not torch.allclose(calibrated.confidence(), plain.confidence(), atol=1e-2)
    quick = load(model_files, "tmt", "MODEL.TMT.TEST_ATTENTION", "False")  # it computes T for the calibration only
    assert quick(image).transferability is None
    quick.calibrate(tmp_path / "calibration.json")
    with_t = quick(image)
    assert torch.equal(with_t.transferability, calibrated.transferability) and with_t.temperatures is not None
    with refuses(str(tmp_path / "calibration.json")):
        load(model_files, "full").calibrate(tmp_path / "calibration.json")


def test_the_command(model_files: Path, image: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), image[..., ::-1])
    predictor = load(model_files)
    twos, threes = (write(tmp_path / f"{t}.json", predictor, torch.full((19,), t)) for t in (2.0, 3.0))
    other = tmp_path / "other.json"
    write_json(other, encode(Confidence(torch.ones(2)), ("lawn", "pond")))
    model = ["--config-file", str(model_files / "tmt.yaml"), "--weights", str(model_files / "tmt.pth")]

    def run(output: str, *words: Any) -> int:
        place = ["--input", str(tmp_path / "photos"), "--output", str(tmp_path / output)]
        return predict.main([*model, *place, *map(str, words)])

    def read(output: str, kind: str) -> np.ndarray:
        return cv2.imread(str(tmp_path / output / kind / "a.png"), cv2.IMREAD_UNCHANGED)

    kinds = ("--write", "labels", "confidence")
    assert run("plain", *kinds) == run("twos", *kinds, "--calibration", twos) == 0
    assert np.array_equal(read("plain", "labels"), read("twos", "labels"))
    assert (read("twos", "confidence") <= read("plain", "confidence")).all()
    assert read("twos", "confidence").mean() < read("plain", "confidence").mean() - 1
    assert run("twos", *kinds, "--calibration", twos) == 0
    for words in (("--calibration", threes), ()):
        with refuses(str(tmp_path / "twos")):
            run("twos", *kinds, *words)
    with refuses(str(other)):
        run("other", *kinds, "--calibration", other)
    with refuses("--calibration"):
        run("other", "--write", "labels", "--calibration", twos)
    assert not (tmp_path / "other").exists()

    words = ["--target", str(tmp_path / "photos"), "--output", str(tmp_path / "selected"), "--budget", "1"]
    with refuses("--calibration"):
        select_labels.main([*model, *words, "--calibration", str(twos)])
    calibrated = [*model, *words, "--prelabels", "--confidence", "0.99", "--calibration"]
    assert select_labels.main([*calibrated, str(write(tmp_path / "hot.json", predictor, torch.full((19,), 15.0)))]) == 0
    prelabels = cv2.imread(str(tmp_path / "selected" / "prelabels" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert (prelabels == 255).all()  # nothing is that sure
