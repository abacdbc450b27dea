"""Predictions of images of any kind and size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from tests.helpers.errors import refuses
from tests.helpers.models import make_records
from tests.helpers.small_runs import exif
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.errors import UserError
from tmt_d2.evaluation import inference as inference_module
from tmt_d2.inference import Predictor
from tmt_d2.inference.predictor import _pixels
from tmt_d2.modeling import precision

pytestmark = pytest.mark.slow


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, RGB."""
    (record,) = make_records([(height, width)], seed)
    return record["image"].permute(1, 2, 0).numpy()


@pytest.fixture
def load(model_files: Path) -> Callable[..., Predictor]:
    def build(name: str = "tmt", *opts: Any) -> Predictor:
        return Predictor.from_config(str(model_files / f"{name}.yaml"), str(model_files / f"{name}.pth"), opts)

    return build


def test_every_kind_of_image(load: Callable[..., Predictor], tmp_path: Path) -> None:
    predictor = load()
    rgb = random_image(45, 70)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    kinds: list[Any] = [rgb, Image.fromarray(rgb), tmp_path / "a.png", str(tmp_path / "a.png")]
    predictions = [predictor(kind) for kind in kinds] + [predictor(rgb[:, :, ::-1], channels="BGR")]
    for prediction in predictions:
        assert prediction.labels.shape == (45, 70)
        assert prediction.labels.dtype == torch.uint8
        assert prediction.scores.shape == (19, 45, 70)
        assert prediction.transferability is not None
        assert prediction.transferability.shape == (3, 45, 70)
        assert torch.equal(prediction.scores, predictions[0].scores)
    assert torch.equal(predictions[0].labels, predictions[0].scores.argmax(0).to(torch.uint8))
    assert 0 <= predictions[0].transferability.min() < predictions[0].transferability.max() <= 1
    assert not torch.equal(predictor(rgb[:, :, ::-1]).scores, predictions[0].scores)  # the order of channels counts


def test_the_exif_orientation_is_not_applied(
    load: Callable[..., Predictor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a data set, whose labels belong to the image as stored."""
    predictor = load("full")
    rgb, path = random_image(45, 70), tmp_path / "photo.png"
    Image.fromarray(rgb).save(path, exif=exif(6))
    expected = predictor(rgb).scores
    assert torch.equal(predictor(Image.open(path)).scores, expected)
    assert not caplog.messages
    assert torch.equal(predictor(path).scores, expected)
    assert len(caplog.messages) == 1 and str(path) in caplog.text
    label = tmp_path / "label.png"
    Image.fromarray(np.zeros((45, 70), np.uint8)).save(label)
    mapper = SemanticMapper(is_train=False, label_spaces={}, min_sizes=(0,), max_size=0)
    item = mapper({"file_name": str(path), "sem_seg_file_name": str(label)})
    assert torch.equal(predictor(item["image"].permute(1, 2, 0).numpy()).scores, expected)
    seen = predictor(ImageOps.exif_transpose(Image.open(path)))
    assert torch.equal(seen.scores, predictor(np.ascontiguousarray(np.rot90(rgb, -1))).scores)
    assert seen.labels.shape == (70, 45)


def test_pil_images_of_16_bits_equal_their_files(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 137, dtype=np.uint16)[:450].reshape(15, 30)
    for name in ("deep.png", "deep.tif"):
        path = tmp_path / name
        cv2.imwrite(str(path), values)
        assert Image.open(path).mode == "I;16"
        opened = _pixels(Image.open(path), "RGB", "RGB")
        assert np.array_equal(opened, _pixels(path, "RGB", "RGB"))
        assert np.array_equal(opened[..., 1], values // 256)
    for mode in ("I", "F"):
        with pytest.raises(UserError, match=f"mode {mode}"):
            _pixels(Image.new(mode, (4, 3)), "RGB", "RGB")


def test_gray_images(load: Callable[..., Predictor]) -> None:
    predictor = load("full")
    gray = Image.fromarray(random_image(40, 40)[:, :, 0])
    expected = predictor(np.repeat(np.asarray(gray)[:, :, None], 3, 2))
    assert torch.equal(predictor(gray).scores, expected.scores)
    assert expected.transferability is None


def test_predictions_equal_those_of_the_model(load: Callable[..., Predictor]) -> None:
    predictor = load()
    rgb = random_image(45, 70)
    with torch.no_grad():
        (result,) = predictor.model([{"image": torch.from_numpy(rgb).permute(2, 0, 1), "height": 45, "width": 70}])
    prediction = predictor(rgb)
    assert torch.equal(prediction.scores, result["sem_seg"])
    level = result["transferability"][0][None, None]
    assert level.shape[2:] == (2, 3)  # of stride 32: 64 x 96 pixels, more than the image has
    expected = nn.functional.interpolate(level, (64, 96), mode="bilinear", align_corners=False)[0, 0, :45, :70]
    assert torch.equal(prediction.transferability[0], expected)


def test_precision(load: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    rgb = random_image(45, 70)
    exact, close = (load("tmt", "TEST.PRECISION", each)(rgb).scores for each in ("float32", "bfloat16"))
    assert close.dtype == torch.float32
    assert 0 < (close - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_images_are_resized_as_in_testing(load: Callable[..., Predictor]) -> None:
    predictor = load("tmt", "INPUT.MIN_SIZE_TEST", 32, "INPUT.MAX_SIZE_TEST", 48)
    seen = []
    predictor.model.register_forward_pre_hook(lambda _, args: seen.extend(item["image"].shape for item in args[0]))
    assert predictor(random_image(60, 120)).scores.shape == (19, 60, 120)
    assert seen == [(3, 24, 48)]


def test_a_batch_equals_single_predictions(load: Callable[..., Predictor]) -> None:
    predictor = load()
    images = [random_image(45, 70, 1), random_image(100, 40, 2), random_image(64, 96, 3), random_image(40, 80, 4)]
    calls = []
    predictor.model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    batch = predictor.batch(images)
    assert calls == [3, 1]  # 45 x 70, 64 x 96 and 40 x 80 are all padded to 64 x 96
    assert predictor.batch(images, size=2)[2].labels.shape == (64, 96)
    for image, prediction in zip(images, batch):
        alone = predictor(image)
        assert torch.allclose(alone.scores, prediction.scores, atol=1e-5)
        assert torch.allclose(alone.transferability, prediction.transferability, atol=1e-5)
    assert predictor.batch([]) == []


def test_sliding_window(load: Callable[..., Predictor]) -> None:
    """One window is the whole image; two windows see a part each."""
    opts = ["TEST.SLIDING_WINDOW.ENABLED", True, "TEST.SLIDING_WINDOW.STRIDE", [64, 64]]
    image = random_image(64, 128)
    whole = load()(image)
    one = load("tmt", *opts, "TEST.SLIDING_WINDOW.SIZE", [64, 128])(image)
    assert torch.allclose(one.scores, whole.scores, atol=1e-6)
    assert torch.allclose(one.transferability, whole.transferability, atol=1e-6)
    two = load("tmt", *opts, "TEST.SLIDING_WINDOW.SIZE", [64, 64])(image)
    left = load()(image[:, :64])
    assert torch.allclose(two.scores[:, :, :64], left.scores, atol=1e-6)
    assert torch.allclose(two.transferability[:, :, :64], left.transferability, atol=1e-6)
    assert not torch.allclose(two.scores, whole.scores, atol=1e-3)


def test_large_images_keep_fewer_scores(load: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch) -> None:
    import tmt_d2.inference.predictor as module

    for part in (module, inference_module):
        monkeypatch.setattr(part, "MAX_SCORE_PIXELS", 64 * 64)
    predictor = load()
    image = random_image(96, 130)
    large, small = predictor.batch([image, random_image(50, 60)])
    assert large.labels.shape == (96, 130)
    assert large.scores.shape == (19, 48, 65)
    assert large.transferability.shape == (3, 48, 65)
    assert int(large.labels.max()) < 19  # transferability is no class
    assert small.scores.shape == (19, 50, 60)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), 7]
)
def test_wrong_images(image: Any) -> None:
    with pytest.raises(UserError, match="image"):
        _pixels(image, "RGB", "RGB")
    with refuses("channels"):
        _pixels(random_image(4, 4), "GRB", "RGB")  # type: ignore[arg-type]


def test_wrong_weights(model_files: Path, tmp_path: Path) -> None:
    config = str(model_files / "tmt.yaml")
    with pytest.raises(UserError, match="MODEL.WEIGHTS"):
        Predictor.from_config(config)
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        Predictor.from_config(config, str(tmp_path / "gone.pth"))
    with pytest.raises(UserError, match="full.pth"):  # it has no estimator
        Predictor.from_config(config, str(model_files / "full.pth"))


def test_without_a_gpu_on_the_cpu(load: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    predictor = load("full", "MODEL.DEVICE", "cuda")
    assert predictor.model.device.type == "cpu" and not predictor.model.training
    assert predictor.cfg.MODEL.DEVICE == "cuda"
