"""Fixtures that the tests share. Everything runs on one core of a CPU, without a network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from tests.helpers.models import make_records, tiny_cfg
from tests.helpers.small_runs import make_scenes, save_start, small_cfg
from tmt_d2.utils.logs import LOGGERS

pytest.register_assert_rewrite("tests.helpers.errors", "tests.helpers.fuzz")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def loggers_speak_to_pytest() -> None:
    """Undo what a command that another test ran has done to the loggers; its screen may be a closed file by now."""
    for name in [*LOGGERS, *logging.root.manager.loggerDict]:
        if name.split(".")[0] in LOGGERS:
            logger = logging.getLogger(name)
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
            for handler in list(logger.handlers):
                if type(handler) is logging.StreamHandler and handler.stream.closed:
                    logger.removeHandler(handler)


@pytest.fixture
def clean_catalogs() -> Iterator[None]:
    """What the test registers is forgotten after it."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def build_tiny() -> Callable[..., nn.Module]:
    """build_tiny(architecture, KEY=value, ...) -> a model in evaluation mode; equal calls give equal weights.

    T acts in inference, so that outputs show it.
    """

    def build(architecture: str = "TransferableMaskFormer", **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        changes = {"MODEL__TMT__TEST_ATTENTION": True, "MODEL__META_ARCHITECTURE": architecture, **changes}
        return build_model(tiny_cfg(**changes)).eval()

    return build


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Two images of different odd sizes."""
    return make_records()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of two small data sets."""
    return make_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def data_root(scenes: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(scenes))
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that every stage after the first may start from."""
    return save_start(tmp_path_factory.mktemp("start") / "start.pth")


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configs and checkpoints of two random models: tmt.yaml (T acts in inference), tmt.pth, full.yaml, full.pth."""
    folder = tmp_path_factory.mktemp("models")
    changes = {"MODEL__MASK_FORMER__DEC_LAYERS": 4, "INPUT__MIN_SIZE_TEST": 0, "MODEL__TMT__TEST_ATTENTION": True}
    for name in ("tmt", "full"):
        cfg = small_cfg(name, folder / name, **changes)
        torch.manual_seed(0)
        torch.save({"model": build_model(cfg).state_dict()}, folder / f"{name}.pth")
        (folder / f"{name}.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def only_the_center(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sampled points are the middle of the map, so that the losses can be computed with a pencil."""
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.full(size, 0.5))
