"""The table of methods and the config files: each method has its file, and each variant changes keys of its method."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.models import Build
from tmt_d2 import setup_cfg
from tmt_d2.adaptation.alignment import SCORES
from tmt_d2.adaptation.methods import BASELINE, METHODS, OURS, Method, method_of

FOLDERS = [ROOT / "configs" / name for name in ("tiny", "lite0", "R50", "SwinL")]
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
VARIANTS = [
    path for folder in FOLDERS for path in sorted(folder.glob("*.yaml")) if path.stem not in (*METHODS, *STAGES, "Base")
]


def flat(values: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def changes(path: Path) -> dict[str, Any]:
    """What a variant sets otherwise than the file of its method, but for OUTPUT_DIR."""
    cfg = setup_cfg(str(path))
    method = dict(flat(setup_cfg(str(path.parent / f"{cfg.TRANSFER.METHOD}.yaml"))))
    return {key: value for key, value in flat(cfg) if value != method[key] and key != "OUTPUT_DIR"}


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_method_has_its_config_file(folder: Path, method: Method) -> None:
    cfg = setup_cfg(str(folder / f"{method.name}.yaml"))
    assert method_of(cfg) is method
    assert cfg.TRANSFER.STAGE == "finetune"
    assert method.architecture == cfg.MODEL.META_ARCHITECTURE
    assert bool(cfg.DATASETS.SOURCE_TRAIN) >= method.reads_source
    assert f"output/{folder.name}/{method.name}" == cfg.OUTPUT_DIR
    assert method.starts_from in STAGES and (folder / f"{method.starts_from}.yaml").is_file()


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_variant_changes_keys_of_one_method_only(path: Path) -> None:
    cfg, changed = setup_cfg(str(path)), changes(path)
    assert path.stem.startswith(f"{cfg.TRANSFER.METHOD}-")
    assert changed and all(key.startswith(OF_A_METHOD[cfg.TRANSFER.METHOD]) for key in changed)
    assert f"output/{path.parent.name}/{path.stem}" == cfg.OUTPUT_DIR
    assert changed == changes(ROOT / "configs" / "tiny" / path.name)  # the same whatever the model


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
