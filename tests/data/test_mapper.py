"""From a record to a training sample: sizes, crops, flips and colors, of image and label alike."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from tests.helpers.small_runs import exif
from tmt_d2.data import reader
from tmt_d2.data.augmentation import Crop, crop_image, crop_label, ssd_colors
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.mapper import SemanticMapper

SIZE = (105, 191)
NAME = "street"


def smooth_image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC))


def blocky_label(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, 20, (7, 9))
    ids[ids == 19] = 255
    return cv2.resize(ids.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, str]:
    image, label = str(tmp_path / "a.png"), str(tmp_path / "a_label.png")
    Image.fromarray(smooth_image(SIZE)).save(image)
    Image.fromarray(blocky_label(SIZE)).save(label)
    return {"file_name": image, "sem_seg_file_name": label, "image_id": "a", "dataset": NAME}


def build(**changes: object) -> SemanticMapper:
    values: dict[str, object] = {
        "is_train": True,
        "label_spaces": {NAME: TRAIN_IDS},
        "min_sizes": (52, 105, 160, 210),
        "max_size": 400,
        "crop_size": (64, 96),
    }
    return SemanticMapper(**(values | changes))


def resize_then_crop(image: np.ndarray, label: np.ndarray, max_area: float) -> tuple[np.ndarray, np.ndarray]:
    """The same augmentations as Detectron2 does them, on whole images."""
    inputs = T.AugInput(image, sem_seg=label)
    T.AugmentationList(
        [
            T.ResizeShortestEdge((52, 105, 160, 210), 400, "choice"),
            T.RandomCrop_CategoryAreaConstraint("absolute", (64, 96), max_area, 255),
        ]
    )(inputs)
    return inputs.image, inputs.sem_seg


@pytest.mark.parametrize("max_area", [1.0, 0.3])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_crops_are_detectron2s_for_the_same_random_state(
    record: dict[str, str], max_area: float, image_format: str
) -> None:
    mapper = build(single_category_max_area=max_area, image_format=image_format)
    image, label = smooth_image(SIZE), blocky_label(SIZE)
    if image_format == "BGR":
        image = np.ascontiguousarray(image[:, :, ::-1])
    for seed in range(20):
        np.random.seed(seed)
        expected_image, expected_label = resize_then_crop(image, label, max_area)
        np.random.seed(seed)
        sample = mapper(record)
        assert sample["image"].shape == (3, *expected_label.shape)
        assert sample["padded_size"] == (64, 96)
        assert sample["image"].dtype == sample["sem_seg"].dtype == torch.uint8
        assert np.array_equal(sample["sem_seg"], expected_label)
        difference = np.abs(sample["image"].permute(1, 2, 0).int().numpy() - expected_image)
        assert difference.max() <= 1


def test_box_corners_by_hand() -> None:
    crop = Crop(source=(100, 200), resized=(50, 400), top=10, left=40, height=20, width=100)
    assert crop.box == (20.0, 20.0, 70.0, 60.0)
    assert Crop((100, 200), (50, 400), 0, 0, 50, 400).box == (0.0, 0.0, 200.0, 100.0)


@pytest.mark.parametrize("resized", [(37, 61), (105, 191), (211, 383), (90, 400)])
def test_crop_equals_resize_then_crop_everywhere(resized: tuple[int, int]) -> None:
    image, label = smooth_image(SIZE, 3), blocky_label(SIZE, 3)
    whole = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR)).astype(int)
    whole_label = np.asarray(Image.fromarray(label).resize(resized[::-1], Image.Resampling.NEAREST))
    height, width = 31, 47
    for top in (0, 3, resized[0] - height):
        for left in (0, 10, resized[1] - width):
            crop = Crop(SIZE, resized, top, left, height, width)
            window = (slice(top, top + height), slice(left, left + width))
            assert np.abs(crop_image(image, crop) - whole[window]).max() <= 1
            assert np.array_equal(crop_label(label, crop), whole_label[window])


def test_shifted_crop_is_not_equal() -> None:
    image = smooth_image(SIZE, 3)
    whole = np.asarray(Image.fromarray(image).resize((383, 211), Image.Resampling.BILINEAR)).astype(int)
    crop = Crop(SIZE, (211, 383), 41, 40, 31, 47)
    assert np.abs(crop_image(image, crop) - whole[40:71, 40:87]).max() > 1


@pytest.mark.parametrize(("short_edge", "reduction"), [(210, 1), (100, 2), (20, 8)])
def test_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_edge: int, reduction: int
) -> None:
    size = (209, 331)  # no multiple of 8
    Image.fromarray(smooth_image(size)).save(tmp_path / "i.jpg", quality=95)
    Image.fromarray(blocky_label(size)).save(tmp_path / "l.png")
    record = {"file_name": str(tmp_path / "i.jpg"), "sem_seg_file_name": str(tmp_path / "l.png"), "dataset": NAME}
    mapper = build(min_sizes=(short_edge,), max_size=999, crop_size=(18, 25))
    opened: list[str] = []
    read_image = reader.read_image
    monkeypatch.setattr(reader, "read_image", lambda *args: opened.append(args[0]) or read_image(*args))
    worst = 0.0
    for seed in range(8):
        np.random.seed(seed)
        fast = mapper(record)
        with monkeypatch.context() as patch:
            patch.setattr("tmt_d2.data.mapper._read_reduced", lambda *_: None)
            np.random.seed(seed)
            slow = mapper(record)
        assert torch.equal(fast["sem_seg"], slow["sem_seg"])
        worst = max(worst, (fast["image"].float() - slow["image"].float()).abs().mean().item())
    assert worst < 2.5
    assert len(opened) == (8 if reduction > 1 else 16)
    assert Crop(size, (short_edge, round(331 * short_edge / 209)), 0, 0, 5, 5).reduction == reduction


@pytest.mark.parametrize("label_is", ["as stored", "turned"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_testing_and_training_without_labels_read_what_training_reads(
    tmp_path: Path, orientation: int, label_is: str
) -> None:
    Image.fromarray(smooth_image((64, 96))).save(tmp_path / "i.jpg", quality=98, exif=exif(orientation))
    size = (96, 64) if label_is == "turned" and orientation > 4 else (64, 96)
    Image.fromarray(blocky_label(size)).save(tmp_path / "l.png")
    record = {"file_name": str(tmp_path / "i.jpg"), "sem_seg_file_name": str(tmp_path / "l.png"), "dataset": NAME}
    whole = {"min_sizes": (0,), "crop_size": None}
    trained, tested, unlabeled = (
        build(**whole, is_train=is_train, with_label=with_label)(record)
        for is_train, with_label in ((True, True), (False, True), (True, False))
    )
    assert tuple(trained["sem_seg"].shape) == size
    for sample in (tested, unlabeled):
        assert torch.equal(sample["image"], trained["image"])
        assert (sample["height"], sample["width"]) == (trained["height"], trained["width"]) == size


@pytest.mark.parametrize("reduction", [1, 2])
def test_sizes_that_are_equal_at_a_fraction_only(tmp_path: Path, reduction: int) -> None:
    """208 x 207 and 207 x 208 are both 104 x 104 at one half."""
    stored = smooth_image((207, 208))
    Image.fromarray(stored).save(tmp_path / "i.jpg", quality=98, exif=exif(6))
    record = {"file_name": str(tmp_path / "i.jpg"), "sem_seg_file_name": str(tmp_path / "l.png"), "dataset": NAME}
    Image.fromarray(blocky_label((208, 207))).save(record["sem_seg_file_name"])
    mapper = build(min_sizes=(208 // reduction,), max_size=999, crop_size=None)
    pixels = mapper(record)["image"].permute(1, 2, 0).numpy().astype(float)
    upright = np.ascontiguousarray(np.rot90(stored, -1))
    assert np.abs(pixels - cv2.resize(upright, pixels.shape[1::-1], interpolation=cv2.INTER_AREA)).mean() < 4
    Image.fromarray(blocky_label((208, 208))).save(record["sem_seg_file_name"])
    with pytest.raises(reader.SizeError, match="208x207"):
        mapper(record)


def test_single_category_constraint_changes_what_is_drawn(tmp_path: Path) -> None:
    label = np.zeros((80, 120), np.uint8)
    label[:, 100:] = 3
    Image.fromarray(smooth_image((80, 120))).save(tmp_path / "i.png")
    Image.fromarray(label).save(tmp_path / "l.png")
    record = {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png"), "dataset": NAME}

    def share_of_uniform_crops(max_area: float) -> float:
        np.random.seed(0)
        mapper = build(min_sizes=(80,), crop_size=(20, 20), single_category_max_area=max_area)
        return float(np.mean([mapper(record)["sem_seg"].unique().numel() == 1 for _ in range(60)]))

    assert share_of_uniform_crops(1.0) > 0.6  # negative control
    assert share_of_uniform_crops(0.9) < 0.3


def test_flip_mirrors_image_and_label_together(record: dict[str, str]) -> None:
    whole = {"min_sizes": (105,), "crop_size": None}
    plain, flipping = build(**whole), build(**whole, horizontal_flip=True)
    reference = plain(record)
    seen = set()
    np.random.seed(0)
    for _ in range(12):
        sample = flipping(record)
        mirrored = not torch.equal(sample["image"], reference["image"])
        seen.add(mirrored)
        expected = (lambda t: t.flip(-1)) if mirrored else (lambda t: t)
        assert torch.equal(sample["image"], expected(reference["image"]))
        assert torch.equal(sample["sem_seg"], expected(reference["sem_seg"]))
    assert seen == {True, False}


def test_range_sampling_draws_every_length_between(record: dict[str, str]) -> None:
    np.random.seed(0)
    mapper = build(min_sizes=(60, 63), min_size_sampling="range", crop_size=None)
    assert {mapper(record)["image"].shape[1] for _ in range(40)} == {60, 61, 62, 63}


@pytest.mark.parametrize(("divisibility", "expected"), [(0, (105, 191)), (32, (128, 192))])
def test_size_divisibility_is_left_to_the_model(
    record: dict[str, str], divisibility: int, expected: tuple[int, ...]
) -> None:
    sample = build(min_sizes=(105,), crop_size=None, size_divisibility=divisibility)(record)
    assert tuple(sample["image"].shape) == (3, 105, 191)
    assert sample["padded_size"] == expected


def test_without_label_nothing_of_a_label_is_read_but_its_size(
    record: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a label was read")

    monkeypatch.setattr(reader, "read_label", refuse)
    label = Path(record["sem_seg_file_name"])
    label.write_bytes(label.read_bytes()[:26])  # the header
    sample = build(with_label=False, label_spaces={})(record | {"domain": 1})
    assert "sem_seg" not in sample
    assert sample["domain"] == 1
    with pytest.raises(AssertionError):
        build()(record)


def test_test_mode_resizes_the_shortest_edge_only(record: dict[str, str]) -> None:
    sample = build(is_train=False, min_sizes=(50,), max_size=80)(record)
    assert tuple(sample["image"].shape) == (3, 44, 80)
    assert (sample["height"], sample["width"]) == SIZE
    assert "sem_seg" not in sample
    assert sample["file_name"] == record["file_name"]
    whole = build(is_train=False, min_sizes=(0,), max_size=80)(record)
    assert np.array_equal(whole["image"].permute(1, 2, 0).numpy(), smooth_image(SIZE))


def test_color_jitter_is_detectron2s_distribution() -> None:
    image = smooth_image((24, 32))
    random.seed(0)
    np.random.seed(0)
    theirs = ColorAugSSDTransform("RGB")
    reference = np.stack([theirs.apply_image(image).astype(float) for _ in range(1500)])
    ours = np.stack([ssd_colors(image, rgb=True).astype(float) for _ in range(1500)])
    assert np.abs(reference.mean(0) - ours.mean(0)).mean() < 2.5
    assert np.abs(reference.std(0) - ours.std(0)).mean() < 2.5
    assert 0.02 < (ours == image).all((1, 2, 3)).mean() < 0.12  # nothing applied: 1/16, as in theirs
    assert np.abs(ours.std(0)).mean() > 10  # negative control: the jitter does something


def test_color_jitter_knows_the_channel_order() -> None:
    image = smooth_image((24, 32))
    for seed in range(20):
        np.random.seed(seed)
        rgb = ssd_colors(image, rgb=True)
        np.random.seed(seed)
        bgr = ssd_colors(np.ascontiguousarray(image[:, :, ::-1]), rgb=False)
        assert np.array_equal(rgb, bgr[:, :, ::-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_size_sampling": "both"}, "MIN_SIZE_TRAIN_SAMPLING"),
        ({"min_size_sampling": "range"}, "INPUT.MIN_SIZE_TRAIN"),
        ({"image_format": "L"}, "INPUT.FORMAT"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_an_unlabeled_image_keeps_its_colors(record: dict[str, str]) -> None:
    """It is what the teacher labels; a labeled one is what the student learns from."""
    plain, jittered = build(), build(color_jitter=True)
    changed = 0
    for seed in range(8):
        crops = []
        for mapper, sample in ((plain, {"labeled": False}), (jittered, {"labeled": False}), (jittered, {})):
            np.random.seed(seed)
            crops.append(mapper({**record, **sample})["image"])
        assert torch.equal(crops[0], crops[1])
        changed += not torch.equal(crops[0], crops[2])
    assert changed


@pytest.mark.parametrize("crop_size", [(64, 96), (100, 96), None])
def test_no_crop_of_an_unlabeled_image_has_ignored_rows(tmp_path: Path, crop_size: tuple[int, int] | None) -> None:
    painted = np.full((*SIZE, 3), 255, np.uint8)
    painted[:21], painted[84:] = 0, 0  # a fifth each, of which the resize blurs the border
    Image.fromarray(painted).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": "a", "dataset": NAME, "labeled": False}
    plain, cut = build(crop_size=crop_size), build(crop_size=crop_size, ignored_rows=(0.22, 0.22))
    black, heights = 0, set()
    for seed in range(12):
        np.random.seed(seed)
        black += int((plain(record)["image"] < 128).sum())
        np.random.seed(seed)
        sample = cut(record)
        assert (sample["image"] > 250).all()
        heights.add(sample["image"].shape[1])
    assert black and len(heights) > 1  # control; small images leave less than a crop, others more
