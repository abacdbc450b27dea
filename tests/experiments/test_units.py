"""Units of a plan: their folders, which of them cells share, and where they start from."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.checkout import ROOT, TINY_CONFIG
from tests.helpers.errors import refuses
from tests.helpers.small_runs import ONE_PAIR, small_cfg, small_units, write_plan, write_values
from tmt_d2.errors import UserError
from tmt_d2.experiments.plan import PLANNED, Plan, read_plan
from tmt_d2.experiments.progress import Progress
from tmt_d2.experiments.running import run_all
from tmt_d2.experiments.units import estimator_cfg, select, units_of


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


@pytest.mark.slow
def test_sources_and_estimators_are_shared(tmp_path) -> None:
    methods = ["full", "tmt", "tmt-uncertain", "tmt-square"]
    names = planned(tmp_path, methods=methods, seeds=[1, 2], label_fractions=[0.25, 1.0])
    assert len(names) == len(set(names))
    kinds = [name.split("/")[0] for name in names]
    assert kinds.count("source") == 2 * 2
    assert kinds.count("evaluation") == 2 * 2
    assert kinds.count("estimator") == 2 * 2 * 2  # adaptive and square
    assert kinds.count("finetune") == 2 * 2 * 2 * 4
    assert "estimator/cityscapes-bdd100k/seed2-square" in names


def test_numbers_of_labels_are_units_too(tmp_path) -> None:
    methods = ["full", "self-training"]
    names = planned(tmp_path, **ONE_PAIR, methods=methods, label_fractions=[1.0], label_counts=[4, 1])
    assert [Path(name).parts[2:4] for name in names if name.startswith("finetune")] == [
        (method, labels) for labels in ("count4", "count1", "labels1") for method in methods
    ]
    plan = read_plan(write_plan(tmp_path, **ONE_PAIR, methods=methods, label_counts=[4, 10]))
    units = units_of(plan, tmp_path, ["SELF_TRAINING.LABELED_RATIO", "0.0"])
    tuned = [unit for unit in units if unit.kind == "finetune"]
    assert [unit.name.split("/")[2:4] for unit in tuned] == [  # without labels their number makes no difference
        ["full", "count4"],
        ["self-training", "count0"],
        ["full", "count10"],
    ]
    assert [unit.about["label_count"] for unit in tuned] == [4, 0, 10]
    assert [unit.cfg.TRANSFER.LABEL_COUNT for unit in tuned] == [4, 4, 10]


def test_a_list_of_labels_is_counted_and_named_after_its_file(tmp_path) -> None:
    (tmp_path / "labeled.txt").write_text("# two of them\na\n\nb\na\n")
    plan = read_plan(write_plan(tmp_path, **ONE_PAIR, methods=["full", "self-training"]))
    units = units_of(plan, tmp_path, ["TRANSFER.LABEL_LIST", str(tmp_path / "labeled.txt")])
    assert units[-1].name == "finetune/cityscapes-bdd100k/self-training/count2-labeled/seed1"
    assert (units[-1].about["label_count"], units[-1].about["label_list"]) == (2, "labeled")
    unlabeled = [str(tmp_path / "labeled.txt"), "SELF_TRAINING.LABELED_RATIO", "0.0"]
    none = units_of(plan, tmp_path, ["TRANSFER.LABEL_LIST", *unlabeled])[-1]  # its labels are not read
    assert none.about["label_count"] == 0 and "label_list" not in none.about


def test_lists_stand_beside_random_draws_by_their_names(tmp_path) -> None:
    (tmp_path / "lists").mkdir()
    for file in ("clue", "kmeans-bdd100k-1", "kmeans-bdd100k-2"):
        (tmp_path / "lists" / f"{file}.txt").write_text("a\nb\n")
    lists = {"k": "lists/kmeans-{target}-{seed}.txt", "clue": "lists/clue.txt"}
    changes: dict[str, Any] = {**ONE_PAIR, "methods": ["full"], "seeds": [1, 2], "label_lists": lists}
    units = units_of(read_plan(write_plan(tmp_path, **changes, label_counts=[2])), tmp_path / "out")
    tuned = [unit for unit in units if unit.kind == "finetune"]
    assert [Path(unit.name).parts[3:] for unit in tuned] == [
        (labels, seed) for seed in ("seed1", "seed2") for labels in ("count2", "count2-k", "count2-clue")
    ]
    assert [unit.about.get("label_list", "") for unit in tuned[:3]] == ["", "k", "clue"]
    assert [Path(unit.cfg.TRANSFER.LABEL_LIST).name for unit in tuned if unit.about.get("label_list") == "k"] == [
        "kmeans-bdd100k-1.txt",
        "kmeans-bdd100k-2.txt",
    ]
    draws = {"draws": {"key": "TRANSFER.LABEL_SEED", "values": [7]}}
    names = planned(tmp_path, **changes, label_counts=[2], sweeps=draws)
    assert [name for name in names if "draws" in name] == [  # of a list nothing is drawn
        f"finetune/cityscapes-bdd100k/full/draws-7/count2/seed{seed}" for seed in (1, 2)
    ]
    only = planned(tmp_path, **changes)
    assert [Path(name).parts[3] for name in only if name.startswith("finetune")] == ["count2-k", "count2-clue"] * 2
    (tmp_path / "lists" / "clue.txt").unlink()
    with pytest.raises(UserError, match="clue.txt"):
        planned(tmp_path, **changes)


def test_a_list_of_other_images_is_another_setting(tmp_path) -> None:
    file = tmp_path / "labeled.txt"

    def done(text: str, path: Path = file) -> bool:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        plan = read_plan(write_plan(tmp_path, **ONE_PAIR, methods=["full"]))
        unit = units_of(plan, tmp_path / "out", ["TRANSFER.LABEL_LIST", str(path)])[-1]
        if not unit.folder.exists():
            unit.folder.mkdir(parents=True)
            unit.write_record(1.0)
        return unit.is_done()

    assert done("a\nb\n") and done("b\na\n") and done("a\nb\n", tmp_path / "moved" / "labeled.txt")
    with pytest.raises(UserError, match="count2-labeled/seed1"):
        done("a\nc\n")


def test_sweeps_share_what_they_do_not_change(tmp_path) -> None:
    sweeps = {
        "p_T": {"key": "MODEL.TMT.P_T", "values": [0.0, 0.3, 0.5], "methods": ["tmt"]},
        "kappa": {"key": "MODEL.TMT.KAPPA", "values": [1.0, 10.0], "methods": ["tmt"]},
        "cells": {"key": "MODEL.TMT.CELL_SIZES", "values": [[1, 1, 1]], "methods": ["tmt"]},
    }
    names = planned(tmp_path, **ONE_PAIR, sweeps=sweeps)
    tuned = [name for name in names if name.startswith("finetune/cityscapes-bdd100k/tmt/")]
    assert [name.split("/")[3] for name in tuned] == ["labels1", "p_T-0", "p_T-0.5", "kappa-1", "cells-1_1_1"]
    estimators = [name for name in names if name.startswith("estimator/")]
    assert [Path(name).name for name in estimators] == ["seed1", "seed1-kappa1.0", "seed1-cell_sizes1_1_1"]


def test_an_estimator_is_shared_unless_regions_or_discriminators_differ() -> None:
    shared = small_cfg("estimator", Path("out/estimator"))
    for name in ("tmt", "tmt-no-tma", "tmt-live", "tmt-random", "tmt-uncertain"):
        assert estimator_cfg(shared, small_cfg(name, Path("out"))) == ("", shared)
    variant, square = estimator_cfg(shared, small_cfg("tmt-square", Path("out")))
    assert (variant, square.OUTPUT_DIR, square.MODEL.TMT.REGIONS) == ("square", "out/estimator-square", "square")
    sharper = small_cfg("tmt", Path("out"), MODEL__TMT__KAPPA=3.0, MODEL__TMT__CELL_SIZES=[2, 2, 4])
    assert estimator_cfg(shared, sharper)[0] == "cell_sizes2_2_4-kappa3.0"


def test_seed_and_labels_are_those_of_the_config_files_where_a_plan_has_none(tmp_path) -> None:
    few = tmp_path / "few.yaml"
    few.write_text(f'_BASE_: "{ROOT}/configs/methods/full.yaml"\nTRANSFER: {{LABEL_FRACTION: 0.5}}\n')
    model = tmp_path / "model.yaml"
    model.write_text(f'_BASE_: "{TINY_CONFIG}"\nSEED: 4\n')
    plan = Plan(model, (("cityscapes", "bdd100k"),), ("full", str(few)))
    assert [unit.name for unit in units_of(plan, tmp_path)][2:] == [
        "finetune/cityscapes-bdd100k/full/labels1/seed4",
        "finetune/cityscapes-bdd100k/few/labels0.5/seed4",
    ]
    units = units_of(plan, tmp_path, ["SEED", "7", "TRANSFER.LABEL_FRACTION", "0.25"])
    assert units[-1].name == "finetune/cityscapes-bdd100k/few/labels0.25/seed7"
    assert units[-1].about["seed"] == units[-1].cfg.SEED == 7 and units[-1].about["label_fraction"] == 0.25


def test_weights_that_are_given_are_those_of_the_source_stage(tmp_path) -> None:
    plan = read_plan(write_plan(tmp_path, **ONE_PAIR, methods=["full"]))
    units = units_of(plan, tmp_path, ["MODEL.WEIGHTS", "pretrained.pth"])
    trained = str(units[0].folder / "model_final.pth")
    assert [unit.cfg.MODEL.WEIGHTS for unit in units] == ["pretrained.pth", trained, trained]


def test_methods_of_a_seed_differ_in_nothing_but_the_method(tmp_path) -> None:
    plan = read_plan(write_plan(tmp_path, methods=["full", "linear"], seeds=[5]))
    full, linear = (unit.cfg for unit in units_of(plan, tmp_path) if unit.name.startswith("finetune/cityscapes-bdd"))
    full, linear = full.clone(), linear.clone()
    assert full.SEED == linear.SEED == 5
    for cfg in (full, linear):
        cfg.defrost()
        cfg.OUTPUT_DIR = cfg.TRANSFER.METHOD = ""
    assert full == linear


def test_only_takes_what_it_needs_along(tmp_path) -> None:
    units = units_of(read_plan(write_plan(tmp_path)), tmp_path)
    names = [unit.name for unit in select(units, "finetune/cityscapes-*/tmt")]
    assert names == [
        "source/cityscapes/seed1",
        "estimator/cityscapes-bdd100k/seed1",
        "finetune/cityscapes-bdd100k/tmt/labels1/seed1",
    ]
    with refuses("--only"):
        select(units, "gtav")


def test_what_has_several_values_is_not_overridden(tmp_path: Path) -> None:
    """Else its cells would be one run under several names."""
    sweeps = {"p_T": {"key": "MODEL.TMT.P_T", "values": [0.1, 0.2], "methods": ["tmt"]}}
    plan = read_plan(write_plan(tmp_path, **ONE_PAIR, seeds=[1, 2], sweeps=sweeps))
    for key, where in (("SEED", "seeds"), ("MODEL.TMT.P_T", "sweeps.p_T")):
        with pytest.raises(UserError, match=where) as error:
            units_of(plan, tmp_path, [key, "0"])
        assert error.value.key == key


def test_what_is_made_from_a_unit_goes_with_it(tmp_path: Path) -> None:
    """Once the source is run with other settings, what was made from the earlier one is refused, and all is named."""
    units = small_units(tmp_path)
    for unit in units:
        write_values(unit)
        unit.write_record(1.0)
    assert set(Progress(units, tmp_path / "out", {}).state.values()) == {"done"}
    changed = small_units(tmp_path, kind_options={"source": {"SOLVER.BASE_LR": 0.5}})
    shutil.rmtree(units[0].folder)
    with pytest.raises(UserError) as error:
        Progress(changed, tmp_path / "out", {})
    assert all(unit.name in str(error.value) for unit in units)
    assert error.value.key == str(units[1].folder) and "--output" in error.value.hint


def test_what_began_with_other_settings_does_not_go_on(tmp_path: Path) -> None:
    first, *_ = small_units(tmp_path)
    first.write_beginning()
    assert not first.is_done()
    other, *_ = small_units(tmp_path, "SOLVER.BASE_LR", "0.5")
    with pytest.raises(UserError, match="source/cityscapes/seed1"):
        other.is_done()
    for key in ("LOGGING.IMAGES", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS_KEPT"):
        assert not small_units(tmp_path, key, "2")[0].is_done()  # no result depends on it
    assert not small_units(tmp_path, "MODEL.TMT.TEST_ATTENTION", "True")[0].is_done()  # a plain model has no T
    with refuses(str(first.folder)):
        small_units(tmp_path, "MODEL.DEVICE", "meta")[0].is_done()
    write_values(first)
    first.write_record(1.0)
    assert first.is_done() and not (first.folder / "begun.json").exists()


@pytest.mark.parametrize("key", ["MODEL.TMT.P", "SEED.NUMBER", "P_T"])
def test_a_sweep_over_no_key(tmp_path, key) -> None:
    for methods in (["full"], ["linear"]):  # one that the plan has, and one that it has not
        with refuses(key):
            planned(tmp_path, sweeps={"p": {"key": key, "values": [0.5], "methods": methods}})


@pytest.mark.parametrize("override", [("TRANSFER.LABEL_COUNT", "3"), ("TRANSFER.LABEL_FRACTION", "0.5")])
def test_overrides_that_a_plan_varies_are_refused(tmp_path: Path, override: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=override[0]):
        small_units(tmp_path, *override, label_counts=[2, 4])


@pytest.mark.parametrize("key", PLANNED)
def test_overrides_that_units_have_themselves_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=key):
        small_units(tmp_path, key, "gtav_sem_seg_train")


def test_a_sweep_has_the_values_that_the_config_reads(tmp_path: Path) -> None:
    sweep = {"rate": {"key": "SOLVER.BASE_LR", "values": ["1e-2", 0.01, 0.02], "methods": ["full"]}}
    units = [unit for unit in small_units(tmp_path, sweeps=sweep) if "sweep" in unit.about]
    assert [unit.about["value"] for unit in units] == [0.01, 0.02]
    assert [unit.cfg.SOLVER.BASE_LR for unit in units] == [0.01, 0.02]


def test_the_model_of_a_failed_unit_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmt_d2.experiments.running.check_units", lambda units: None)
    models: list[Any] = []

    def fail(unit: Any) -> None:
        model = torch.nn.Linear(1, 1)
        models.append(weakref.ref(model))
        raise UserError("no")

    progress = run_all(small_units(tmp_path, methods=["full"])[:1], tmp_path / "out", fail, {})
    gc.collect()
    assert isinstance(progress.first_error, UserError) and models[0]() is None
