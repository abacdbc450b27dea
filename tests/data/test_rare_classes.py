"""Rare class sampling: which class, which image of it, and a crop that shows it; counted once."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.small_runs import small_cfg
from tmt_d2.data import loaders
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS, LabelSpace
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.rare_classes import ClassChooser, RareClasses, class_pixels, sampling_probabilities
from tmt_d2.engine.run_stage import run_stage

register_split("rare_classes_test", list, TRAIN_IDS)


def make_records(folder: Path, labels: list[np.ndarray]) -> list[dict[str, Any]]:
    records = []
    for index, label in enumerate(labels):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), label)
        cv2.imwrite(str(folder / f"{index}.jpg"), np.zeros((*label.shape, 3), np.uint8))
        files = {"file_name": str(folder / f"{index}.jpg"), "sem_seg_file_name": str(path)}
        records.append({**files, "image_id": str(index), "dataset": "rare_classes_test"})
    return records


def labels() -> list[np.ndarray]:
    """Road; cars in the second and third, a hundredth and a quarter of it; a few pixels of sky in the first."""
    maps = [np.zeros((40, 40), np.uint8) for _ in range(4)]
    maps[1][:4, :4], maps[2][20:, 20:], maps[0][0, :2], maps[3][:] = 13, 13, 10, 255
    return maps


def rare(folder: Path, **changes: Any) -> RareClasses:
    settings: dict[str, Any] = {"temperature": 0.5, "area": 0.02, "crop": (40, 40), "min_size": 40, "max_size": 80}
    return RareClasses(**settings | changes, folder=folder / "counts")


def test_probabilities_by_hand() -> None:
    found = sampling_probabilities(np.array([0.9, 0.1]), 0.4)
    assert found[1] / found[0] == pytest.approx(np.exp(0.8 / 0.4))
    assert sampling_probabilities(np.array([0.9, 0.1]), 1e-4).tolist() == pytest.approx([0, 1])


def test_images_have_what_fills_enough_of_a_crop(tmp_path: Path) -> None:
    records = make_records(tmp_path, labels())
    chooser = rare(tmp_path).chooser(records)
    assert list(chooser.classes) == [0, 13]
    assert [each.tolist() for each in chooser.images] == [[0, 1, 2], [2]]
    pixels = np.array([3 * 1600 - 2 - 16 - 400, 16 + 400]) / (3 * 1600)
    np.testing.assert_allclose(chooser.probabilities, sampling_probabilities(pixels, 0.5))
    smaller = rare(tmp_path, crop=(20, 20)).chooser(records)  # 0.01 of the image is 0.04 of it
    assert [each.tolist() for each in smaller.images] == [[0, 1, 2], [1, 2]]
    assert rare(tmp_path, area=1.0).chooser(records[3:]) is None


def test_a_broken_label_is_named(tmp_path: Path, caplog: Any) -> None:
    records = make_records(tmp_path, labels())
    Path(records[1]["sem_seg_file_name"]).write_bytes(b"")
    for _ in range(2):  # the second time the counts come from the file
        caplog.clear()
        chooser = rare(tmp_path).chooser(records)
        assert [each.tolist() for each in chooser.images] == [[0, 2], [2]]
        assert records[1]["sem_seg_file_name"] in caplog.text


def test_counts_are_of_what_ids_mean(tmp_path: Path) -> None:
    records = make_records(tmp_path, labels())
    counted = class_pixels(records, tmp_path / "counts")[0]
    swapped = LabelSpace("swapped", {0: 13, 13: 0, 10: 10}, frozenset({255}))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("rare_classes", "datasets.registration"):
            patch.setattr(f"tmt_d2.data.{module}.label_space_of", lambda name: swapped)
        anew = class_pixels(records, tmp_path / "counts")[0]
    assert (anew[:, [0, 13]] == counted[:, [13, 0]]).all() and (anew != counted).any()


def test_classes_are_counted_once_and_again_when_a_file_changes(tmp_path: Path, monkeypatch: Any) -> None:
    records = make_records(tmp_path, labels())
    broken = records[0] | {"sem_seg_file_name": str(tmp_path / "no.png")}
    pixels, sizes = class_pixels([*records, broken], tmp_path / "counts")
    assert pixels[1, 13] == 16 and pixels[1, 0] == 1584 and pixels[3].sum() == pixels[4].sum() == 0
    assert sizes[:4].tolist() == [[40, 40]] * 4
    read: list[Any] = []
    monkeypatch.setattr("tmt_d2.data.rare_classes._count", lambda record: read.append(record) or (pixels[0], sizes[0]))
    class_pixels([*records, broken], tmp_path / "counts")
    assert not read
    cv2.imwrite(records[0]["sem_seg_file_name"], np.full((44, 44), 3, np.uint8))
    class_pixels([*records, broken], tmp_path / "counts")
    assert len(read) == 5


def test_draws_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    chooser = ClassChooser([0, 13], np.array([0.25, 0.75]), [np.array([0, 1, 2]), np.array([2])])
    sampler = loaders.StepSampler([range(5, 8), range(5)], [2, 1], 1, [chooser, None])
    draws = [draw for step in range(500) for draw in sampler.batch(step)]
    assert draws == [draw for step in range(500) for draw in sampler.batch(step)]
    chosen = Counter((draw.index, draw.rare_class) for draw in draws if draw.rare_class is not None)
    assert chosen[7, 13] / 1000 == pytest.approx(0.75, abs=0.05)
    assert sum(chosen.values()) == 1000 and {index for index, wanted in chosen if wanted == 0} == {5, 6, 7}
    assert all(draw.index < 5 for draw in draws if draw.rare_class is None)


def test_crops_show_the_rare_class(tmp_path: Path) -> None:
    record = make_records(tmp_path, labels())[2]
    settings: dict[str, Any] = {"is_train": True, "label_spaces": {"rare_classes_test": TRAIN_IDS}, "min_sizes": (40,)}
    mapper = SemanticMapper(**settings, max_size=80, crop_size=(16, 16), rare_class_area=0.2)

    def shares(**wanted: int) -> list[float]:
        np.random.seed(0)
        return [float((mapper(record | wanted)["sem_seg"] == 13).float().mean()) for _ in range(60)]

    wanted, any_ = shares(rare_class=13), shares()
    assert sum(share >= 0.2 for share in wanted) >= 58
    assert sum(share >= 0.2 for share in any_) < 45  # control


def test_counts_are_kept_where_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the weights; in OUTPUT_DIR if the weights are none of this user's."""
    (tmp_path / "source").mkdir()
    weights, forbidden, allows = tmp_path / "source" / "model.pth", set[Path](), os.access
    weights.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in forbidden and allows(path, mode))

    settings = RareClasses.from_config(small_cfg("self-training-daformer", tmp_path / "out", weights))
    assert settings is not None

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (make_records(tmp_path / name, labels()) for name in ("a", "b"))
    found = []
    for records in (first, first, second):
        settings.chooser(records)
        found.append(sorted(path.parents[1] for path in tmp_path.rglob("class_pixels/*.npz")))
        forbidden.add(weights.parent / "class_pixels")
    assert found == [[weights.parent], [weights.parent], [tmp_path / "out", weights.parent]]


@pytest.mark.slow
def test_a_stage_draws_rare_classes(data_root: None, start: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"SOLVER__MAX_ITER": 1, "DATASETS__SOURCE_TRAIN": ("cityscapes_sem_seg_train",)}
    cfg = small_cfg("self-training-daformer", tmp_path, start, **changes)
    drawn: list[Any] = []
    batch = loaders.StepSampler.batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders.StepSampler, "batch", lambda self, step: drawn.extend(made := batch(self, step)) or made)
        run_stage(cfg)
    assert [draw.rare_class is not None for draw in itertools.islice(drawn, 4)] == [False, True, False, True]
    assert len(list((start.parent / "class_pixels").glob("*.npz"))) == 1
