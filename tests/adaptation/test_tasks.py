"""The registry of tasks and the config files: each task has its file, each variant changes keys of its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkout import BASE_CONFIG, ROOT, TINY_CONFIG
from tests.helpers.errors import refuses
from tests.helpers.models import Build, tiny_cfg
from tmt_d2 import setup_cfg
from tmt_d2.adaptation import BASELINE, OURS, TASKS, Task, task_of
from tmt_d2.config import flatten

NAMES = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml"))
OF_A_METHOD = {  # its keys
    "tmt": "MODEL.TMT.",
    "leep": "TRANSFER.ALIGNMENT.",
    "otce": "TRANSFER.ALIGNMENT.",
    "full-ema": "SELF_TRAINING.",
    "self-training": "SELF_TRAINING.",
}
VARIANTS = [name for name in NAMES if name not in TASKS]


def changes(name: str, model: Path) -> dict[str, Any]:
    """Keys, other than OUTPUT_DIR, that a variant sets to other values than its method."""
    cfg = setup_cfg(model, method=name)
    method = flatten(setup_cfg(model, method=cfg.TRANSFER.METHOD))
    return {key: value for key, value in flatten(cfg).items() if value != method[key] and key != "OUTPUT_DIR"}


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_task_has_its_config_file(task: type[Task]) -> None:
    cfg = setup_cfg(TINY_CONFIG, method=task.name)
    assert task_of(cfg) is task
    assert task.architecture in ("", cfg.MODEL.META_ARCHITECTURE)
    assert all(cfg.DATASETS[split.key] for split in [*task.training_splits(cfg), *task.test_splits])
    assert f"output/tiny/{task.name}" == cfg.OUTPUT_DIR
    assert task.starts_from in ("", *TASKS)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_keys_of_one_method_only(name: str) -> None:
    method, changed = setup_cfg(TINY_CONFIG, method=name).TRANSFER.METHOD, changes(name, TINY_CONFIG)
    assert name.startswith(f"{method}-")
    assert changed and all(key.startswith(OF_A_METHOD[method]) for key in changed)
    assert changed == changes(name, BASE_CONFIG)  # the same for every model


def test_parameters_that_train_exist(build_tiny: Build) -> None:
    assert {BASELINE, OURS} <= TASKS.keys()
    assert all(name == task.name for name, task in TASKS.items())
    for task in TASKS.values():
        names = [name for name, _ in build_tiny(task.architecture or "MaskFormer").named_parameters()]
        assert all(any(name.startswith(prefix) for name in names) for prefix in task.trains), task.name


def test_an_unknown_task_is_refused() -> None:
    with refuses("TRANSFER.METHOD", "magic"):
        task_of(tiny_cfg(TRANSFER__METHOD="magic"))
