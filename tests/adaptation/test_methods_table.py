"""The table of methods and the config files: each method has its file, and each variant changes keys of its method."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkout import BASE_CONFIG, ROOT, TINY_CONFIG
from tests.helpers.models import Build
from tmt_d2 import setup_cfg
from tmt_d2.adaptation.alignment import SCORES
from tmt_d2.adaptation.methods import BASELINE, METHODS, OURS, Method, method_of
from tmt_d2.engine.run_dir import flat

NAMES = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml"))
STAGES = ("source", "estimator")  # files of the stages before fine-tuning
OF_A_METHOD = {  # its keys
    "tmt": "MODEL.TMT.",
    "leep": "TRANSFER.ALIGNMENT.",
    "otce": "TRANSFER.ALIGNMENT.",
    "full-ema": "SELF_TRAINING.",
    "self-training": "SELF_TRAINING.",
}
COMPARED = {  # (file, name) that is compared all the same
    ("tmt_d2/adaptation/alignment.py", "leep"): "names of scores, which are those of the methods that raise them",
    ("tmt_d2/adaptation/alignment.py", "otce"): "as above",
}
VARIANTS = [name for name in NAMES if name not in (*METHODS, *STAGES)]


def changes(name: str, model: Path) -> dict[str, Any]:
    """Keys, other than OUTPUT_DIR, that a variant sets to other values than its method."""
    cfg = setup_cfg(model, method=name)
    method = flat(setup_cfg(model, method=cfg.TRANSFER.METHOD))
    return {key: value for key, value in flat(cfg).items() if value != method[key] and key != "OUTPUT_DIR"}


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_method_has_its_config_file(method: Method) -> None:
    cfg = setup_cfg(TINY_CONFIG, method=method.name)
    assert method_of(cfg) is method
    assert cfg.TRANSFER.STAGE == "finetune"
    assert method.architecture == cfg.MODEL.META_ARCHITECTURE
    assert bool(cfg.DATASETS.SOURCE_TRAIN) >= method.reads_source
    assert f"output/tiny/{method.name}" == cfg.OUTPUT_DIR
    assert method.starts_from in STAGES and method.starts_from in NAMES


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_keys_of_one_method_only(name: str) -> None:
    method, changed = setup_cfg(TINY_CONFIG, method=name).TRANSFER.METHOD, changes(name, TINY_CONFIG)
    assert name.startswith(f"{method}-")
    assert changed and all(key.startswith(OF_A_METHOD[method]) for key in changed)
    assert changed == changes(name, BASE_CONFIG)  # the same for every model


def test_rows_of_the_table(build_tiny: Build) -> None:
    assert {BASELINE, OURS} <= METHODS.keys()
    assert all(name == method.name for name, method in METHODS.items())
    assert METHODS[BASELINE] == Method(BASELINE, METHODS[BASELINE].about)  # nothing but fine-tuning
    assert {method.raises for method in METHODS.values()} == {"", *SCORES}
    for method in METHODS.values():
        names = [name for name, _ in build_tiny(method.architecture).named_parameters()]
        assert all(any(name.startswith(prefix) for name in names) for prefix in method.trains), method.name


def test_nobody_else_compares_names_of_methods() -> None:
    """A method's row says what it does; code that asks for its name would have to be found for the next method."""
    compared = {
        (str(path.relative_to(ROOT)), value.value)
        for path in (ROOT / "tmt_d2").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for value in ast.walk(node)
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value in METHODS
    }
    assert compared <= COMPARED.keys()
