"""Values that no stage could run with are refused where the config is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

from tests.helpers.models import tiny_cfg
from tmt_d2.config import add_tmt_config
from tmt_d2.config.checks import CHOICES, RANGES, Range, check_cfg, value_of
from tmt_d2.errors import UserError
from tmt_d2.modeling.official import UNUSED

READ = ("SOLVER", "INPUT", "DATALOADER", "TEST", "TRANSFER", "MODEL.MASK_FORMER", "MODEL.SEM_SEG_HEAD", "MODEL.SWIN")
READ += ("MODEL.TIMM", "MODEL.TMT")
# Detectron2's, for detection and other schedules and samplers.
NOT_READ = {
    "SOLVER.BIAS_LR_FACTOR", "SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.STEPS", "SOLVER.POLY_LR_CONSTANT_ENDING",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS", "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "DATALOADER.REPEAT_THRESHOLD", "TEST.DETECTIONS_PER_IMAGE",
    "TEST.PRECISE_BN.NUM_ITER",
}  # fmt: skip


def defaults() -> CfgNode:
    cfg = get_cfg()
    add_tmt_config(cfg)
    return cfg


def numbers(node: CfgNode, prefix: str) -> Iterator[str]:
    for name, value in node.items():
        key = f"{prefix}.{name}"
        if isinstance(value, CfgNode):
            yield from numbers(value, key)
        elif type(value) in (int, float) or (isinstance(value, (list, tuple)) and value and type(value[0]) is not str):
            yield key


def test_every_number_has_a_range() -> None:
    cfg = defaults()
    found = {key for section in READ for key in numbers(value_of(cfg, section), section)}
    assert len(found) > 90
    assert found - {*RANGES, *UNUSED, *NOT_READ} == set()


def test_defaults_are_within_their_ranges() -> None:
    cfg = defaults()
    for key, allowed in RANGES.items():
        assert allowed.admits(value_of(cfg, key)), key


def changed(key: str, value: Any) -> CfgNode:
    cfg = tiny_cfg()
    section, _, name = key.rpartition(".")
    (value_of(cfg, section) if section else cfg)[name] = value
    return cfg


@pytest.mark.parametrize("key", RANGES)
def test_what_is_outside_is_refused(key: str) -> None:
    cfg, allowed = tiny_cfg(), RANGES[key]
    section, _, name = key.rpartition(".")
    node = value_of(cfg, section) if section else cfg
    default = node[name]
    check_cfg(cfg)
    outside = [math.nan, allowed.high + (0 if allowed.below else 1), allowed.low - (0 if allowed.above else 1)]
    for value in outside[: 1 if math.isinf(allowed.low) else 3]:
        if math.isinf(value) and not allowed.below:
            continue
        node[name] = [*default[:-1], value] if isinstance(default, (list, tuple)) else value
        with pytest.raises(UserError, match=key):
            check_cfg(cfg)
    if isinstance(default, (list, tuple)):
        node[name] = []
        with pytest.raises(UserError, match=key):
            check_cfg(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", -1e-4),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.MAX_ITER", -3),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLr"),
        ("DATALOADER.NUM_WORKERS", -1),
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.DEVICE", ""),
        ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 0),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 66),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 40),
        ("INPUT.CROP.SIZE", (0, 0)),
        ("INPUT.CROP.SIZE", (0.5, 0.5)),
        ("INPUT.CROP.SIZE", (64,)),
        ("INPUT.CROP.TYPE", "relative"),
        ("MODEL.TMT.CELL_SIZES", [1, 2.5, 4]),
        *((key, "magic") for key in CHOICES),
    ],
)
def test_examples(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key) as caught:
        check_cfg(changed(key, value))
    assert "\n" not in str(caught.value)


def test_ends_of_ranges() -> None:
    assert Range(0).admits(0) and Range(0).admits([0, 5]) and not Range(0).admits(math.inf)
    assert not Range(0, above=True).admits(0) and Range(0, above=True).admits(1e-9)
    assert Range(0, 1, below=False).admits(1) and not Range(0, 1).admits(1)
    assert Range(0, math.inf, below=False).admits(math.inf)
    assert not Range(0, count=2).admits([1]) and Range(0, count=2).admits((1, 2))
    assert not Range(1, whole=True).admits(1.0) and not Range(0).admits(True)
