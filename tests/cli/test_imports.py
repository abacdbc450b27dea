"""Commands answer --help and wrong arguments before they import PyTorch, Detectron2 and the like."""

from __future__ import annotations

import ast
import importlib
import json

import pytest
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from tests.helpers.checkout import ROOT, run_python
from tmt_d2.config import add_tmt_config, flatten

RULE = (
    "a command module has parser() and imports at its top only what parser() needs; main() imports the rest after its "
    "checks (docstring of tmt_d2/cli/common.py); names that help texts show live in a light module (choices.py)"
)
SECONDS = {"cv2", "detectron2", "gradio", "matplotlib", "numba", "onnx", "scipy", "sklearn", "timm", "torch"}
MODELS = {"detectron2.data", "detectron2.modeling", "matplotlib", "scipy", "timm"}
CONFIG = "--config-file configs/models/tiny.yaml"
MISTAKES = (
    ("tmt_d2.cli.train", ""),
    ("tmt_d2.cli.train", "--config-file nowhere.yaml"),
    ("tmt_d2.cli.train", f"{CONFIG} --method tnt"),
    ("tmt_d2.cli.train", f"{CONFIG} SEED"),
    ("tmt_d2.cli.train_pair", "--model nowhere.yaml --source gtav --target bdd100k --output nowhere"),
    ("tmt_d2.cli.train_matrix", "--config nowhere.yaml --output nowhere"),
    ("tmt_d2.cli.score", f"{CONFIG} --target gtav --checkpoints nowhere.pth"),
    ("tmt_d2.cli.predict", f"{CONFIG} --input no/where --output nowhere"),
    ("tmt_d2.cli.predict", f"{CONFIG} --input docs --output docs/inside"),
    ("tmt_d2.cli.estimate", f"{CONFIG} --input docs --output nowhere --weights nowhere.pth"),
    ("tmt_d2.cli.show_attention", f"{CONFIG} --output README.md --input docs"),
    ("tmt_d2.cli.export", f"{CONFIG} --size 3 --output a.onnx"),
    ("tmt_d2.cli.check_data", "--data-sets paris"),
    ("tmt_d2.projects.label_selection.command", f"{CONFIG} --target docs --budget 0 --output nowhere"),
    ("tmt_d2.projects.annotation.command", "--export nowhere.zip --images docs --classes a.json --output nowhere"),
    ("tmt_d2.projects.annotation.label_studio_backend", "--project docs"),
    ("tmt_d2.projects.annotation.label_studio_backend", f"--config-file {ROOT}/configs/models/tiny.yaml"),
    ("tmt_d2.projects.loop.command", "status --project docs"),
    ("tmt_d2.projects.huggingface.convert", "strip nowhere.pth a.pth"),
    ("tmt_d2.projects.report.command", "nowhere"),
    ("tmt_d2.projects.viewer.command", "--port 99999"),
)
BAD_SETTINGS = (
    ("tmt_d2.cli.train", f"{CONFIG} MODEL.NOTHING 3"),
    ("tmt_d2.cli.predict", f"{CONFIG} --input docs --output nowhere SELF_TRAINING.CLASS_BALANCE -1"),
    (
        "tmt_d2.projects.label_selection.command",
        f"{CONFIG} --target docs --budget 3 --output nowhere SELF_TRAINING.MIX paste",
    ),
)
PROBE = """
import importlib, json, shlex, sys
for module, words in json.loads(sys.argv[1]):
    before, error = set(sys.modules), ""
    try:
        command = importlib.import_module(module)
        command.parser().format_help() if words is None else command.main(shlex.split(words))
    except BaseException as problem:
        error = type(problem).__name__
    print(json.dumps([error, sorted(set(sys.modules) - before)]))
"""

Answer = tuple[str, set[str]]  # name of the error's type, modules imported for the first time


def commands() -> list[str]:
    """Modules of COMMANDS in setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    return list(ast.literal_eval(assigned["COMMANDS"]).values())


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str | None], Answer]:
    """What each command answers in one process, and the modules that it is the first to import."""
    cases = [*((module, None) for module in commands()), *MISTAKES, *BAD_SETTINGS]
    process = run_python("-c", PROBE, json.dumps(cases))
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(cases), process.stderr
    return {case: (error, set(modules)) for case, (error, modules) in zip(cases, lines)}


@pytest.mark.slow
@pytest.mark.parametrize("module", commands())
def test_help_imports_nothing_that_takes_seconds(module: str, answers: dict[tuple[str, str | None], Answer]) -> None:
    error, imported = answers[module, None]
    assert not error, f"{module}: {error}: {RULE}"
    assert not imported & SECONDS, f"{module}: {RULE}"


@pytest.mark.slow
@pytest.mark.parametrize(("module", "words"), MISTAKES)
def test_mistakes_are_found_before_anything_that_takes_seconds(
    module: str, words: str, answers: dict[tuple[str, str | None], Answer]
) -> None:
    error, imported = answers[module, words]
    assert error in ("UserError", "FileNotFoundError", "SystemExit")
    assert not imported & SECONDS, f"{module}: {RULE}"


@pytest.mark.slow
def test_bad_settings_are_found_before_a_model_is_imported(answers: dict[tuple[str, str | None], Answer]) -> None:
    found = [answers[case] for case in BAD_SETTINGS]
    assert all(error == "UserError" and not imported & MODELS for error, imported in found)
    assert "torch" in found[0][1]  # control: Detectron2, which declares most keys, imports it


@pytest.mark.parametrize(
    "package", ["tmt_d2", "tmt_d2.config", "tmt_d2.data", "tmt_d2.inference", "tmt_d2.projects.loop"]
)
def test_lazy_exports_are_there(package: str) -> None:
    module = importlib.import_module(package)
    assert all(callable(getattr(module, name)) for name in module.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing


def test_keys_of_deeplab_are_those_of_detectron2() -> None:
    official, ours = get_cfg(), get_cfg()
    add_deeplab_config(official)
    add_tmt_config(ours)
    values = flatten(ours)
    assert all(values[key] == value for key, value in flatten(official).items())
