"""What a matrix file plans: its units, what they share, and what is said of a file that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_runs import ROOT, write_plan
from tmt_d2.experiments.estimate import Estimate
from tmt_d2.experiments.plan import read_plan
from tmt_d2.experiments.progress import Progress
from tmt_d2.experiments.slurm import waves
from tmt_d2.experiments.units import select, units_of

PRESETS = sorted((ROOT / "configs" / "matrix").glob("*.yaml"))


def planned(folder: Path, **changes) -> list[str]:
    return [unit.name for unit in units_of(read_plan(write_plan(folder, **changes)), folder / "out")]


def test_units_of_two_domains(tmp_path) -> None:
    assert planned(tmp_path, scores={"images": 2}) == [
        "source/cityscapes/seed1",
        "evaluation/cityscapes-bdd100k/seed1",
        "scores/cityscapes-bdd100k/seed1",
        "finetune/cityscapes-bdd100k/full/labels1/seed1",
        "estimator/cityscapes-bdd100k/seed1",
        "finetune/cityscapes-bdd100k/tmt/labels1/seed1",
        "source/bdd100k/seed1",
        "evaluation/bdd100k-cityscapes/seed1",
        "scores/bdd100k-cityscapes/seed1",
        "finetune/bdd100k-cityscapes/full/labels1/seed1",
        "estimator/bdd100k-cityscapes/seed1",
        "finetune/bdd100k-cityscapes/tmt/labels1/seed1",
    ]


def test_sources_and_estimators_are_shared(tmp_path) -> None:
    changes = {"sources": ["cityscapes", "bdd100k", "gtav"], "methods": ["full", "tmt", "tmt-soft", "tmt-square"]}
    names = planned(tmp_path, **changes, seeds=[1, 2], label_fractions=[0.25, 1.0])
    assert len(names) == len(set(names))
    kinds = [name.split("/")[0] for name in names]
    assert kinds.count("source") == 3 * 2
    assert kinds.count("evaluation") == 6 * 2
    assert kinds.count("estimator") == 6 * 2 * 2  # adaptive and square
    assert kinds.count("finetune") == 6 * 2 * 2 * 4
    assert "estimator/cityscapes-gtav/seed2-square" in names


def test_sweeps_share_what_they_do_not_change(tmp_path) -> None:
    sweeps = {
        "p_T": {"key": "MODEL.TMT.P_T", "values": [0.0, 0.3, 0.5], "methods": ["tmt"]},
        "kappa": {"key": "MODEL.TMT.KAPPA", "values": [1.0, 10.0], "methods": ["tmt"]},
        "cells": {"key": "MODEL.TMT.CELL_SIZES", "values": [[1, 1, 1]], "methods": ["tmt"]},
    }
    names = planned(tmp_path, pairs=["cityscapes-bdd100k"], sources=None, sweeps=sweeps)
    tuned = [name for name in names if name.startswith("finetune/cityscapes-bdd100k/tmt/")]
    assert [name.split("/")[3] for name in tuned] == ["labels1", "p_T-0", "p_T-0.5", "kappa-1", "cells-1_1_1"]
    estimators = [name for name in names if name.startswith("estimator/")]
    assert [Path(name).name for name in estimators] == ["seed1", "seed1-kappa1.0", "seed1-cell_sizes1_1_1"]


def test_methods_of_a_seed_differ_in_nothing_but_the_method(tmp_path) -> None:
    plan = read_plan(write_plan(tmp_path, methods=["full", "linear"], seeds=[5]))
    full, linear = (unit.cfg for unit in units_of(plan, tmp_path) if unit.name.startswith("finetune/cityscapes-bdd"))
    full, linear = full.clone(), linear.clone()
    assert full.SEED == linear.SEED == 5
    for cfg in (full, linear):
        cfg.defrost()
        cfg.OUTPUT_DIR = cfg.TRANSFER.METHOD = ""
    assert full == linear


def test_nothing_in_a_wave_waits_for_the_same_wave(tmp_path) -> None:
    units = units_of(read_plan(write_plan(tmp_path, scores={})), tmp_path)
    levels = [[unit.kind for unit in wave] for wave in waves(units)]
    assert set(levels[0]) == {"source"}
    assert set(levels[1]) == {"evaluation", "scores", "estimator", "finetune"}
    assert set(levels[2]) == {"finetune"}
    assert sum(map(len, levels)) == len(units)


def test_only_takes_what_it_needs_along(tmp_path) -> None:
    units = units_of(read_plan(write_plan(tmp_path)), tmp_path)
    names = [unit.name for unit in select(units, "finetune/cityscapes-*/tmt")]
    assert names == [
        "source/cityscapes/seed1",
        "estimator/cityscapes-bdd100k/seed1",
        "finetune/cityscapes-bdd100k/tmt/labels1/seed1",
    ]
    with pytest.raises(ValueError, match="--only gtav: no unit is called so"):
        select(units, "gtav")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["full"]}, "a matrix file has the unknown key 'method': use .*methods"),
        ({"configs": "nowhere"}, "configs: .*nowhere is not a folder"),
        ({"methods": ["magic"]}, "unknown method magic: .* has .*full.*tmt"),
        ({"methods": []}, r"methods is \[\]: it must be a list of at least one name"),
        ({"methods": [3]}, r"methods is \[3\]: it must be a list of at least one name"),
        ({"configs": 3}, "configs is 3: it must name a folder"),
        ({"seeds": [1, "two"]}, r"seeds is \[1, 'two'\]: it must be a list of at least one whole number"),
        ({"label_fractions": 0.5}, "label_fractions is 0.5: it must be a list of at least one number"),
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
        ({"sweeps": {"p_T": {"key": "SEED", "value": [1]}}}, "sweeps.p_T: the sweep has the unknown key 'value': use"),
        ({"sweeps": {"p_T": {"key": "SEED", "values": [1], "methods": ["no"]}}}, "sweeps.p_T: unknown method no"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_plan(write_plan(tmp_path, **changes))
    assert str(tmp_path / "matrix.yaml") in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nothing.yaml does not exist"):
        read_plan(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("key", ["MODEL.TMT.P", "SEED.NUMBER", "P_T"])
def test_a_sweep_over_no_key(tmp_path, key) -> None:
    for methods in (["full"], ["linear"]):  # one that the plan has, and one that it has not
        with pytest.raises(ValueError, match=f"sweeps.p: the config has no key {key}"):
            planned(tmp_path, sweeps={"p": {"key": key, "values": [0.5], "methods": methods}})


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
