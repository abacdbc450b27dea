"""Keys and their allowed values: every number has a range, and other values are refused where the config is read."""

from __future__ import annotations

import math
from typing import Any

import pytest
from detectron2.config import get_cfg

from tests.helpers.checkout import ROOT
from tests.helpers.models import tiny_cfg
from tmt_d2.config import add_tmt_config, check_cfg, flatten, get_key, replace_keys
from tmt_d2.config.keys import ALLOWED, MASK2FORMER, OWN
from tmt_d2.config.ranges import Range
from tmt_d2.config.table import page
from tmt_d2.errors import UserError
from tmt_d2.modeling.official import UNUSED

RANGES = {key: allowed for key, allowed in ALLOWED.items() if isinstance(allowed, Range)}
CHOICES = [key for key in ALLOWED if key not in RANGES]
READ = ("SOLVER.", "INPUT.", "DATALOADER.", "TEST.", "TRANSFER.", "SELF_TRAINING.", "LOGGING.", "MODEL.MASK_FORMER.")
READ += ("MODEL.SEM_SEG_HEAD.", "MODEL.SWIN.", "MODEL.TIMM.", "MODEL.TMT.")
# Detectron2's, for detection and other schedules and samplers.
NOT_READ = {
    "SOLVER.BIAS_LR_FACTOR", "SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.STEPS", "SOLVER.POLY_LR_CONSTANT_ENDING",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS", "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "DATALOADER.REPEAT_THRESHOLD", "TEST.DETECTIONS_PER_IMAGE",
    "TEST.PRECISE_BN.NUM_ITER",
}  # fmt: skip


def is_number(value: Any) -> bool:
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return type(first) in (int, float)


def test_every_number_has_a_range_that_holds_its_default() -> None:
    cfg = get_cfg()
    add_tmt_config(cfg)
    values = flatten(cfg)
    numbers = {key for key, value in values.items() if key.startswith(READ) and is_number(value)}
    assert len(numbers) > 90
    assert numbers - {*RANGES, *UNUSED, *NOT_READ} == set()
    assert all(values[key] in allowed for key, allowed in RANGES.items())


def test_own_keys_are_described_and_on_their_page() -> None:
    assert not OWN.keys() & MASK2FORMER.keys()
    assert all(key.about for key in OWN.values())
    assert (ROOT / "docs" / "config.md").read_text() == page(), "run python -m tmt_d2.config.table > docs/config.md"


@pytest.mark.parametrize("key", RANGES)
def test_values_outside_of_a_range(key: str) -> None:
    cfg, allowed = tiny_cfg(), RANGES[key]
    default = get_key(cfg, key)
    outside: list[Any] = [math.nan, allowed.high + (not allowed.below), allowed.low - (not allowed.above)]
    outside = [value for value in outside[: 1 if math.isinf(allowed.low) else 3] if value not in allowed]
    if isinstance(default, (list, tuple)):
        outside = [*([*default[:-1], value] for value in outside), []]
    for value in outside:
        with pytest.raises(UserError) as error:
            check_cfg(replace_keys(cfg, {key: value}))
        assert error.value.key == key and error.value.value is value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLr"),
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.DEVICE", ""),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 66),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 40),
        ("INPUT.CROP.SIZE", (0.5, 0.5)),
        ("INPUT.CROP.SIZE", (64,)),
        ("INPUT.CROP.TYPE", "relative"),
        ("MODEL.TMT.CELL_SIZES", [1, 2.5, 4]),
        ("MODEL.TMT.CELL_SIZES", [2, 4]),
        *((key, "magic") for key in CHOICES),
    ],
)
def test_values_that_no_stage_could_run_with(key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        check_cfg(replace_keys(tiny_cfg(), {key: value}))
    assert error.value.key == key and "\n" not in str(error.value)


def test_ends_of_ranges() -> None:
    assert 0 in Range(0) and [0, 5] in Range(0) and math.inf not in Range(0)
    assert 0 not in Range(0, above=True) and 1e-9 in Range(0, above=True)
    assert 1 in Range(0, 1, below=False) and 1 not in Range(0, 1)
    assert math.inf in Range(0, math.inf, below=False)
    assert [1] not in Range(0, count=2) and (1, 2) in Range(0, count=2)
    assert 1.0 not in Range(1, whole=True) and True not in Range(0)
