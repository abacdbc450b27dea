"""Two processes on the CPU against one with the same images: losses, evaluation, and how they end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.helpers.checkout import run_python
from tests.helpers.custom_data import write
from tests.helpers.distributed_driver import ONE_LABEL, STAGES, changes, run_stages, with_statistics
from tests.helpers.small_runs import contents, make_scenes, metrics_of, save_start, small_cfg
from tmt_d2.adaptation import TASKS
from tmt_d2.data.datasets.label_spaces import CLASSES
from tmt_d2.engine.run_stage import run_stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, a start, and "one": what a single process makes of the stages."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(make_scenes(folder / "scenes")))
        run_stages(folder / "one", save_start(folder / "start.pth"))
    images, labels = ("bdd100k/images/10k/{}/{{stem}}.jpg", "bdd100k/labels/sem_seg/masks/{}/{{stem}}.png")
    splits = {split: {"images": images.format(split), "labels": labels.format(split)} for split in ("train", "val")}
    write(
        folder,
        file="own.yaml",
        name="own",
        root="scenes",
        splits=splits,
        train_ids=None,
        classes=list(CLASSES),
        ignore_ids=[255],
    )
    return folder


def drive(
    runs: Path, scenario: str, output: str, *launcher: str, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    (runs / output).mkdir(exist_ok=True)
    arguments = [scenario, str(runs / output), str(runs / "start.pth"), str(processes)]
    arguments = ["-m", "tests.helpers.distributed_driver", *arguments]
    return run_python(*launcher, *arguments, DETECTRON2_DATASETS=str(runs / "scenes"))


@pytest.fixture(scope="module")
def two(runs: Path) -> subprocess.CompletedProcess[str]:
    return drive(runs, "fail", "two")


def metrics(folder: Path) -> list[dict[str, float]]:
    return [line for line in metrics_of(folder) if "total_loss" in line]


def assert_equal_stages(one: Path, two: Path) -> None:
    for stage in STAGES:
        for single, double in zip(metrics(one / stage), metrics(two / stage), strict=True):
            for name in [name for name in single if "loss" in name]:
                assert double[name] == pytest.approx(single[name], rel=1e-4), (stage, name)
        assert contents(two / stage / "model_final.pth")["/trainer/iteration"] == 2
    assert metrics(one / "source") != metrics(one / "tmt")  # control
    name = "evaluation/evaluation.json"
    assert json.loads((two / name).read_text()) == json.loads((one / name).read_text())
    first, second = (json.loads((folder / "estimator/estimator.json").read_text()) for folder in (one, two))
    assert second["proxy_a_distance"] == pytest.approx(first["proxy_a_distance"], abs=0.1)


def test_two_processes_equal_one(runs: Path, two: subprocess.CompletedProcess[str]) -> None:
    assert_equal_stages(runs / "one", runs / "two")


def test_a_discriminator_that_has_reached_its_target_stands_still(
    runs: Path, two: subprocess.CompletedProcess[str]
) -> None:
    for output in ("one", "two"):
        first, last = (contents(runs / output / "stopped" / f"model_{name}.pth") for name in ("0000000", "final"))
        for part in ("/model/transferability.discriminators.", "/estimator_training/twin."):
            names = [name for name in first if name.startswith(part)]
            moved = {name[len(part)] for name in names if (first[name] != last[name]).any()}
            assert moved == {"0"}, output


def test_alignment_goes_through_in_two_processes(runs: Path, two: subprocess.CompletedProcess[str]) -> None:
    """Each process draws pixels of its own: the scores are near, not equal."""
    start = contents(runs / "start.pth")
    for method in ("leep", "otce"):
        single, double = (
            [line["loss_score"] for line in metrics(runs / of / method / "alignment")] for of in ("one", "two")
        )
        assert double[-1] == pytest.approx(single[-1], rel=0.5) and double[-1] > 0, method
        aligned = contents(runs / "two" / method / "alignment" / "model_final.pth")
        name = "/model/sem_seg_head.pixel_decoder.mask_features.weight"
        moved = (aligned[name] != start[name]).mean(dtype=float)
        assert moved > 0.5, method  # not all: a step may be below a weight's rounding
        assert (runs / "two" / method / "evaluation.json").is_file()


def test_all_processes_evaluate_the_model_that_is_saved(
    runs: Path, two: subprocess.CompletedProcess[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(runs / "scenes"))
    saved = runs / "two" / "statistics" / "model_final.pth"
    cfg = small_cfg("full", tmp_path, saved, **with_statistics())
    run_stage(cfg, eval_only=True)
    alone = json.loads((tmp_path / "evaluation.json").read_text())
    assert json.loads((saved.parent / "evaluation.json").read_text()) == alone


def test_there_is_one_teacher(runs: Path, two: subprocess.CompletedProcess[str]) -> None:
    """Its normalization statistics are those of the first process in every step, not only in checkpoints."""
    first, second = (json.loads((runs / "two" / "teachers" / f"teacher{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and len(first) == 3 and first[0] != first[1]


def test_a_nan_stops_all_with_one_message(runs: Path, two: subprocess.CompletedProcess[str]) -> None:
    first, second = ((runs / "two" / f"nan{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert first.startswith("iteration 1: loss_mask is not finite; images: ")
    assert first.count("leftImg8bit.png") + first.count(".jpg") == 8  # of both processes
    saved = contents(runs / "two" / "nan" / "not_finite_0000001.pth")
    assert saved["/trainer/iteration"] == 0
    assert not (runs / "two" / "nan" / "last_checkpoint").exists()


def test_a_failure_ends_all_with_its_error(runs: Path, two: subprocess.CompletedProcess[str]) -> None:
    assert two.returncode == 2
    assert "error: the images of process 1 are gone" in two.stderr
    assert "Traceback" not in two.stderr


def test_processes_stop_together(runs: Path) -> None:
    stopped = drive(runs, "stop", "stop")
    assert stopped.returncode == 75, stopped.stderr
    folder = runs / "stop" / "stopping"
    iteration = contents(folder / (folder / "last_checkpoint").read_text())["/trainer/iteration"]
    assert 1 <= iteration <= 3  # within a step of the signal
    assert [(runs / "stop" / f"status{rank}.txt").read_text() for rank in (0, 1)] == ["75", "75"]
    assert (runs / "stop" / "evaluating" / "last_checkpoint").read_text() == "model_0000000.pth"
    assert not list(folder.glob(".*.tmp"))


def test_one_labeled_image_is_enough_for_several_processes(runs: Path) -> None:
    """Some have no map of T to make and no image to evaluate on."""
    ended = drive(runs, "one_label", "one_label", processes=3)
    assert not ended.returncode, ended.stderr
    folder = runs / "one_label"
    for name in ONE_LABEL:
        assert (folder / name / TASKS[name].results).is_file(), name
    record = json.loads((folder / "estimated" / "best.json").read_text())
    assert [each["value"] >= 0 for each in record["evaluations"]] == [True, True]
    assert (folder / "estimated" / "model_best.pth").is_file()
    assert json.loads((folder / "own" / "evaluation.json").read_text())["own_sem_seg_val"]["mIoU"] >= 0


def test_one_process_with_half_the_batch_differs(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(runs / "scenes"))
    options = changes(1) | {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 1}
    run_stage(small_cfg("source", tmp_path, **options))
    half, whole = metrics(tmp_path)[0]["total_loss"], metrics(runs / "one" / "source")[0]["total_loss"]
    assert abs(half - whole) > 1e-3 * whole
