"""Every command logs at which size images are read, and training warns where they are shrunk too far."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.models import tiny_cfg
from tmt_d2.adaptation.checks import warn_of_small_inputs
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.datasets.registration import register_split


@pytest.mark.parametrize(("height", "warnings"), [(256, 0), (264, 1)])
def test_training_warns_once_of_images_shrunk_more_than_four_times(
    height: int, warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = []
    for number in range(3):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (2 * height, height)).save(file)
        records.append({"file_name": str(file), "image_id": str(number)})
    name = f"large_{height}_train"
    register_split(name, lambda: records, TRAIN_IDS)
    cfg = tiny_cfg(
        DATASETS__TRAIN=(name,),
        DATASETS__SOURCE_TRAIN=(),
        INPUT__MIN_SIZE_TRAIN=[64],
        INPUT__MAX_SIZE_TRAIN=512,
        INPUT__MIN_SIZE_TEST=64,
        INPUT__MAX_SIZE_TEST=512,
    )
    caplog.clear()  # of a test split that is not overridden
    warn_of_small_inputs(cfg)
    assert len(caplog.records) == warnings
