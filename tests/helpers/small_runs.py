"""Stages so small that a step takes a few hundredths of a second, for tests of everything around the step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.models import TINY
from tmt_d2 import setup_cfg
from tmt_d2.adaptation.estimator import Estimator
from tmt_d2.experiments.plan import read_plan
from tmt_d2.experiments.units import Unit, units_of
from tmt_d2.projects.street_scenes.render import render

TINIEST: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if key not in ("MODEL.DEVICE", "MODEL.WEIGHTS")},
    "MODEL.RESNETS.NORM": "FrozenBN",  # batch normalization would tie the images of a batch together
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "INPUT.MIN_SIZE_TRAIN": (64, 72),
    "INPUT.CROP.SIZE": (64, 64),
    "INPUT.MIN_SIZE_TEST": 64,
    "DATASETS.TEST": ("bdd100k_sem_seg_val",),
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TRANSFER.ESTIMATOR.HELD_OUT": 1,
    "SEED": 3,
}


def make_scenes(root: Path) -> Path:
    """Six training images and one to evaluate on, of two domains."""
    render(root, ["cityscapes", "bdd100k"], train=6, val=1, size=(64, 128), workers=1)
    return root


def options(**changes: Any) -> list[str]:
    """KEY VALUE ... of ``TINIEST`` and the changes, which are spelled SOLVER__MAX_ITER=2."""
    values = TINIEST | {key.replace("__", "."): value for key, value in changes.items()}
    return [text for key, value in values.items() for text in (key, str(value))]


def small_cfg(stage: str, output: Path, weights: Path | str = "", **changes: Any) -> CfgNode:
    """stage: a method of configs/methods: "source", "estimator", "linear", "full", "tmt"."""
    paths = ["OUTPUT_DIR", str(output), "MODEL.WEIGHTS", "" if stage == "source" else str(weights)]
    return setup_cfg(TINY_CONFIG, method=stage, opts=[*paths, *options(**changes)])


def tmt_cfg(output: Path, start: Path, **changes: Any) -> CfgNode:
    """Fine-tuning by TMT that also measures T on the source."""
    return small_cfg("tmt", output, start, **{"DATASETS__SOURCE_TEST": ("cityscapes_sem_seg_val",), **changes})


def save_start(path: Path) -> Path:
    """Weights, discriminators included, that every stage after the first may start from."""
    torch.manual_seed(0)
    model = build_model(small_cfg("tmt", path.parent))
    progress = Estimator(model, 0.0).state  # in a checkpoint of the estimator
    torch.save({"model": model.state_dict(), "estimator_training": progress.state_dict()}, path)
    return path


def exif(orientation: int) -> Image.Exif:
    """An EXIF block with this orientation, for ``Image.save``."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def store_anew(path: Path, on_its_side: bool) -> None:
    """Store the upright image of ``path`` without loss; on its side: with the EXIF entry that turns it back."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels) if on_its_side else pixels)).save(
        path,
        "PNG",
        exif=exif(6 if on_its_side else 1),  # 6: a quarter turn clockwise shows it upright
    )


class Killed(BaseException):
    """An error that nothing in a run handles."""


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Lines of the metrics.json of a run."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def contents(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint by its place, such as "trainer/optimizer/state/0/exp_avg"."""

    def flatten(value: Any, place: str) -> None:
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, (list, tuple)):
            items = enumerate(value)
        else:
            flat[place] = value
            return
        for key, item in items:
            flatten(item, f"{place}/{key}")

    flat: dict[str, Any] = {}
    flatten(torch.load(path, weights_only=True), "")
    return flat


def differences(first: Path, second: Path) -> list[str]:
    """The places where two checkpoints are not equal to the last bit."""
    a, b = contents(first), contents(second)
    same = {key for key in a.keys() & b.keys() if _equal(a[key], b[key])}
    return sorted((a.keys() | b.keys()) - same)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


MATRIX = {"model": str(TINY_CONFIG), "sources": ["cityscapes", "bdd100k"], "methods": ["full", "tmt"]}
ONE_PAIR = {"sources": None, "pairs": ["cityscapes-bdd100k"]}


def write_plan(folder: Path, **changes: Any) -> Path:
    """A matrix file of two domains; changes: other values of keys, None: without the key."""
    path = folder / "matrix.yaml"
    values = {key: value for key, value in {**MATRIX, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def unit_options(**changes: Any) -> list[str]:
    """As ``options``, but a unit says itself what it is tested on, and its seed."""
    small = options(**changes)
    for key in ("DATASETS.TEST", "SEED"):
        position = small.index(key)
        small = small[:position] + small[position + 2 :]
    return small


def small_units(folder: Path, *opts: str, **changes: Any) -> list[Unit]:
    """Of one pair, below ``folder/out``; changes: as for ``write_plan``."""
    plan = read_plan(write_plan(folder, **{**ONE_PAIR, **changes}))
    return units_of(plan, folder / "out", [*unit_options(SOLVER__MAX_ITER=2), *opts])


def measured(units: Sequence[Unit]) -> dict[str, Any]:
    """What each unit has written, by name; without those that have written nothing."""
    files = {"scores": "scores.json", "estimator": "estimator.json"}
    paths = {unit.name: unit.folder / files.get(unit.kind, "evaluation.json") for unit in units}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def write_values(unit: Unit) -> None:
    """Stands for running the unit."""
    values = {"scores": {"LEEP": -1.0}, "estimator": {"proxy_a_distance": [0.5]}}
    files = {"scores": "scores.json", "estimator": "estimator.json"}
    unit.folder.mkdir(parents=True, exist_ok=True)
    file = unit.folder / files.get(unit.kind, "evaluation.json")
    file.write_text(json.dumps(values.get(unit.kind, {"split": {"mIoU": 1.0}})))
