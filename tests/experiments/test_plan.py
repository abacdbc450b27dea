"""Matrix files: those of configs/matrix are plans, and errors of a file name the file and the key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.small_runs import write_plan
from tmt_d2.cli.train_matrix import render_data
from tmt_d2.data.check import MANIFEST
from tmt_d2.errors import UserError
from tmt_d2.experiments.plan import read_plan
from tmt_d2.experiments.progress import Progress, TimeEstimate
from tmt_d2.experiments.units import units_of

P_T = "MODEL.TMT.P_T"
PRESETS = sorted((ROOT / "configs" / "matrix").glob("*.yaml"))


def sweep(**item: Any) -> dict[str, Any]:
    return {"sweeps": {"s": {"key": P_T, "values": [1], **item}}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"method": ["full"]}, "method"),
        ({"configs": "../tiny"}, "configs"),
        ({"model": 3}, "model"),
        ({"methods": ["magic"]}, "method"),
        ({"methods": ["source"]}, "methods"),
        ({"methods": ["full", "full"]}, "methods"),
        ({"methods": []}, "methods"),
        ({"methods": [3]}, "methods"),
        ({"seeds": [1, "two"]}, "seeds"),
        ({"seeds": [True]}, "seeds"),
        ({"label_fractions": 0.5}, "label_fractions"),
        ({"label_fractions": [True]}, "label_fractions"),
        ({"label_counts": [0.5]}, "label_counts"),
        ({"label_counts": [0, 4]}, "label_counts"),
        ({"label_lists": ["a.txt"]}, "label_lists"),
        ({"label_lists": {"k": "{pair}.txt"}}, "label_lists.k"),
        ({"label_lists": {"a": "one.txt", "b": "one.txt"}}, "label_lists"),
        ({"targets": ["cityscapes"], "sources": ["cityscapes"]}, "targets"),
        ({"pairs": ["cityscapes-bdd100k"]}, "pairs"),
        ({"pairs": ["cityscapes"], "sources": None}, "pairs"),
        ({"pairs": ["a-b-c"], "sources": None}, "pairs"),
        ({"options": ["SEED"]}, "options"),
        ({"options": {"SEED": 7}}, "options.SEED"),
        ({"options": {"TRANSFER.LABEL_COUNT": 4}}, "options.TRANSFER.LABEL_COUNT"),
        ({"options": {"DATASETS.TRAIN": ["gtav_sem_seg_train"]}}, "options.DATASETS.TRAIN"),
        ({"kind_options": {"finetuning": {}}}, "kind_options.finetuning"),
        ({"kind_options": {"source": 3}}, "kind_options.source"),
        ({"kind_options": {"source": {1: 2}}}, "kind_options.source.1"),
        ({"kind_options": {"finetune": {"TRANSFER.METHOD": "linear"}}}, "kind_options.finetune.TRANSFER.METHOD"),
        ({"scores": {"image": 3}}, "scores.image"),
        ({"scores": {"images": 1}}, "scores.images"),
        ({"scores": {"draws": 1.5}}, "scores.draws"),
        ({"guess": {"iteration": True}}, "guess.iteration"),
        ({"guess": {"evaluation": -1}}, "guess.evaluation"),
        ({"guess": {"iteration": [1]}}, "guess.iteration"),
        ({"render": {"size": 128}}, "render.size"),
        ({"render": {"train": [3]}}, "render.train"),
        ({"sweeps": {"s": [0.1]}}, "sweeps.s"),
        (sweep(key=None), "sweeps.s.key"),
        (sweep(key="SEED"), "sweeps.s.key"),
        (sweep(key="TRANSFER.ESTIMATOR.HELD_OUT"), "sweeps.s.key"),
        (sweep(key="DATASETS.SOURCE_TRAIN"), "sweeps.s.key"),
        (sweep(value=[1]), "sweeps.s.value"),
        (sweep(values=[]), "sweeps.s: values"),
        (sweep(values=["hard", False]), "sweeps.s: values"),
        (sweep(methods=["no"]), "sweeps.s: method"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    file = write_plan(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        read_plan(file)
    assert error.value.key == str(file)
    assert str(error.value).startswith((f"{file}: {key} is ", f"{file}: {key}: "))


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        read_plan(tmp_path / "nothing.yaml")


def test_numbers_are_read_as_the_config_reads_them(tmp_path: Path) -> None:
    path = write_plan(tmp_path)
    written = "guess: {iteration: 1e-1, evaluation: 2}\nlabel_fractions: [5E-1, 1]\noptions: {SOLVER.BASE_LR: +1e-4}\n"
    path.write_text(path.read_text() + written + "sweeps: {p: {key: MODEL.TMT.P_T, values: [1e-2, '2e-2']}}\n")
    plan = read_plan(path)
    assert plan.guess == {"iteration": 0.1, "evaluation": 2} and plan.label_fractions == (0.5, 1.0)
    assert plan.options == {"SOLVER.BASE_LR": 1e-4} and plan.sweeps[0].values == (0.01, "2e-2")


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_plans(preset: Path, tmp_path: Path) -> None:
    """Of scenes that a plan renders the images are read at their size."""
    plan = read_plan(preset)
    few = replace(plan, pairs=plan.pairs[:1], seeds=plan.seeds[:1])
    units = units_of(few, tmp_path)
    assert {unit.kind for unit in units} >= {"source", "evaluation", "finetune"}
    if plan.render is not None:
        height = plan.render.get("size", (128, 256))[0]
        assert {unit.cfg.INPUT.MIN_SIZE_TEST for unit in units} == {height}


@pytest.mark.slow
def test_presets_can_be_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any folder, also if a package of the same name is there; each choice of options once."""
    plans = [plan for plan in map(read_plan, PRESETS) if plan.render is not None]
    choices = {tuple({**plan.render, "train": 1, "val": 1}.items()): plan for plan in plans}
    assert len(choices) == 2
    (tmp_path / "tmt_d2.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    for number, (options, plan) in enumerate(choices.items()):
        render_data(replace(plan, pairs=plan.pairs[:1], render=dict(options)), Path(str(number)))
        manifests = [json.loads(path.read_text()) for path in (tmp_path / str(number)).rglob(MANIFEST)]
        assert len(manifests) == 2
        for manifest in manifests:
            assert dict(options).items() <= {**manifest, "size": tuple(manifest["size"])}.items()


@pytest.mark.slow
def test_the_smallest_preset_takes_minutes(tmp_path: Path) -> None:
    plan = read_plan(ROOT / "configs" / "matrix" / "tiny-3.yaml")
    units = units_of(plan, tmp_path)
    assert f"0 of {len(units)} done, about" in Progress(units, tmp_path, plan.guess).text()
    assert sum(TimeEstimate([], plan.guess).seconds(unit) or 0 for unit in units) <= 20 * 60
