"""Matrix files: those of configs/matrix are plans, and what is said of one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.small_runs import write_plan
from tmt_d2.experiments.estimate import Estimate
from tmt_d2.experiments.plan import read_plan
from tmt_d2.experiments.progress import Progress
from tmt_d2.experiments.units import units_of

P_T = "MODEL.TMT.P_T"
PRESETS = sorted((ROOT / "configs" / "matrix").glob("*.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["full"]}, "a matrix file has the unknown key 'method': use .*methods"),
        ({"configs": "nowhere"}, "configs: .*nowhere is not a folder"),
        ({"methods": ["magic"]}, "methods: magic is no method or variant of .*tiny: use .*full.*tmt-square"),
        ({"methods": ["Base"]}, "methods: Base is no method"),
        ({"methods": []}, r"methods is \[\]: it must be a list of at least one name"),
        ({"methods": [3]}, r"methods is \[3\]: it must be a list of at least one name"),
        ({"configs": 3}, "configs is 3: it must name a folder"),
        ({"seeds": [1, "two"]}, r"seeds is \[1, 'two'\]: it must be a list of at least one whole number"),
        ({"label_fractions": 0.5}, "label_fractions is 0.5: it must be a list of at least one number"),
        ({"label_counts": [0.5]}, r"label_counts is \[0.5\]: it must be a list of at least one whole number"),
        ({"labelled": ["a.txt"]}, r"labelled is \['a.txt'\]: it must hold keys and values"),
        (
            {"labelled": {"k": "{pair}.txt"}},
            r"labelled.k is \{pair\}.txt: its fields may be \{source\}, \{target\} and",
        ),
        ({"targets": ["cityscapes"], "sources": ["cityscapes"]}, "make no pair: name another target"),
        ({"pairs": ["cityscapes-bdd100k"]}, "give either pairs, or sources and targets"),
        ({"pairs": ["cityscapes"], "sources": None}, "each is written source-target"),
        ({"kind_options": {"finetuning": {}}}, "kind_options has the unknown key 'finetuning': use source"),
        ({"kind_options": {"source": 3}}, "kind_options.source is 3: it must hold keys and values"),
        ({"options": ["SEED"]}, r"options is \['SEED'\]: it must hold keys and values"),
        ({"scores": {"image": 3}}, "scores has the unknown key 'image': use images, pixels, draws"),
        ({"guess": {"seconds": 3}}, "guess has the unknown key 'seconds': use iteration, evaluation"),
        ({"render": {"images": 3}}, "render has the unknown key 'images': use train"),
        ({"sweeps": ["p_T"]}, "sweeps is .*: it must hold keys and values"),
        ({"sweeps": {"p_T": [0.1]}}, "sweeps.p_T: the sweep is .*: it must hold keys and values"),
        ({"sweeps": {"p_T": {"values": [0.1]}}}, "sweeps.p_T: key is None: it must be a key of the config"),
        ({"sweeps": {"p_T": {"key": "MODEL.TMT.P_T"}}}, "sweeps.p_T: values is None: it must be a list of at least"),
        ({"sweeps": {"p_T": {"key": P_T, "value": [1]}}}, "sweeps.p_T: the sweep has the unknown key 'value': use"),
        ({"sweeps": {"p_T": {"key": P_T, "values": [1], "methods": ["no"]}}}, "sweeps.p_T: methods: no is no method"),
        ({"sweeps": {"s": {"key": "SEED", "values": [1]}}}, "sweeps.s: key SEED is the matrix's own, or has no effect"),
        (
            {"sweeps": {"s": {"key": "TRANSFER.ESTIMATOR.HELD_OUT", "values": [1]}}},
            "HELD_OUT is the matrix's own, or h",
        ),
        ({"sweeps": {"s": {"key": P_T, "values": ["hard", False]}}}, "YAML reads on, off, yes and no as such, quote"),
        ({"label_counts": [0, 4]}, r"label_counts is \[0, 4\]: each must be at least 1"),
        ({"options": {"SEED": 7}}, r"options.SEED: give it as seeds: \[7\]"),
        ({"kind_options": {"source": {"SEED": 7}}}, "kind_options.source.SEED: give it as seeds"),
        ({"labelled": {"a": "one.txt", "b": "one.txt"}}, "labelled: a, b are not all different files"),
        ({"seeds": [True]}, "seeds"),
        ({"label_counts": [True]}, "label_counts"),
        ({"label_fractions": [True]}, "label_fractions"),
        ({"guess": {"iteration": True}}, "guess.iteration"),
        ({"guess": {"evaluation": "soon"}}, "guess.evaluation"),
        ({"guess": {"evaluation": -1}}, "guess.evaluation"),
        ({"scores": {"images": 1}}, "scores.images"),
        ({"scores": {"draws": 1.5}}, "scores.draws"),
        ({"render": {"size": 128}}, "render.size"),
        ({"options": {"TRANSFER.LABEL_COUNT": 4}}, "options.TRANSFER.LABEL_COUNT"),
        ({"options": {"DATASETS.TRAIN": ["gtav_sem_seg_train"]}}, "options.DATASETS.TRAIN"),
        ({"kind_options": {"finetune": {"TRANSFER.METHOD": "linear"}}}, "kind_options.finetune.TRANSFER.METHOD"),
        ({"kind_options": {"source": {1: 2}}}, "kind_options.source.1"),
        ({"sweeps": {"s": {"key": "DATASETS.SOURCE_TRAIN", "values": ["a"]}}}, "sweeps.s: key DATASETS.SOURCE_TRAIN"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_plan(write_plan(tmp_path, **changes))
    assert str(tmp_path / "matrix.yaml") in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nothing.yaml does not exist"):
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
def test_presets_are_plans(preset, tmp_path) -> None:
    plan = read_plan(preset)
    assert plan.pairs
    if preset.stem in ("tiny-3", "tiny-20"):
        units = units_of(plan, tmp_path)
        assert f"0 of {len(units)} done, about" in Progress(units, tmp_path, plan.guess).text()
        limit = {"tiny-3": 20, "tiny-20": 90}[preset.stem] * 60
        estimate = Estimate([], plan.guess)
        assert sum(estimate.seconds(unit) or 0 for unit in units) <= limit


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_reads_the_scenes_that_it_renders_at_their_size(path: Path, tmp_path: Path) -> None:
    plan = read_plan(path)
    if plan.render is not None:
        height = plan.render.get("size", (128, 256))[0]
        assert {unit.cfg.INPUT.MIN_SIZE_TEST for unit in units_of(plan, tmp_path)} == {height}
