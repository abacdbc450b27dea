"""Tiny models and images that the tests share. Everything runs on one core of a CPU, without a network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import tmt_d2
from tests.small_runs import make_scenes, save_start
from tmt_d2.cli import LOGGERS

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
BASE_CONFIG = ROOT / "configs" / "Base-Mask2Former-R50.yaml"
TINY: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 64,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 64,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 20,
    "MODEL.MASK_FORMER.DEC_LAYERS": 5,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.TMT.CELL_SIZES": [1, 2, 4],
}
ODD_SIZES = ((37, 91), (64, 50))  # padded to 64 x 96, so that every level has padding at the bottom or right


def tiny_cfg(**changes: Any) -> CfgNode:
    """The R50 base config at a few percent of its size; changes are spelled MODEL__TMT__P_T=0.5."""
    values = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return tmt_d2.setup_cfg(str(BASE_CONFIG), [item for pair in values.items() for item in pair])


@pytest.fixture(autouse=True)
def loggers_speak_to_pytest() -> None:
    """A command that another test ran keeps its log lines to itself."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def build_tiny() -> Callable[..., nn.Module]:
    """build_tiny(architecture, KEY=value, ...) -> a model in evaluation mode; equal calls give equal weights."""

    def build(architecture: str = "TransferableMaskFormer", **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return build_model(tiny_cfg(MODEL__META_ARCHITECTURE=architecture, **changes)).eval()

    return build


def make_records(sizes: Sequence[tuple[int, int]] = ODD_SIZES, seed: int = 0) -> list[dict[str, Any]]:
    """Detectron2 records of noise with a few blocks of colour, and labels with some ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for height, width in sizes:
        coarse = torch.rand(1, 3, 5, 7, generator=generator)
        image = nn.functional.interpolate(coarse, size=(height, width))[0] * 200
        image = image + torch.rand(3, height, width, generator=generator) * 55
        classes = torch.randint(0, 19, (1, 1, 2, 2), generator=generator).float()
        labels = nn.functional.interpolate(classes, size=(height, width))[0, 0].long()
        labels[:3] = 255
        records.append({"image": image.to(torch.uint8), "sem_seg": labels, "height": height, "width": width})
    return records


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Two images of different odd sizes."""
    return make_records()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of two small data sets."""
    return make_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def data_root(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that every stage after the first may start from."""
    return save_start(tmp_path_factory.mktemp("start") / "start.pth")
