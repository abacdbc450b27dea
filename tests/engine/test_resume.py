"""A run that was killed and resumed equals one that was not, to the last bit; where that cannot be, it is refused."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.errors import refuses
from tests.helpers.small_runs import Killed, contents, differences, metrics_of, small_cfg
from tmt_d2.data import loaders
from tmt_d2.engine import trainer
from tmt_d2.engine.hooks.saving import PeriodicSaving
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.trainer import Trainer
from tmt_d2.modeling import precision
from tmt_d2.utils.randomness import seeded

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]

FINAL = "model_final.pth"


def run_killed(cfg: Any, iteration: int) -> None:
    """Run until ``iteration`` has been trained but not yet saved."""

    def die(self: Any) -> None:
        if self.trainer.iter == iteration:
            raise Killed
        save(self)

    save = PeriodicSaving.after_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PeriodicSaving, "after_step", die)
        run_stage(cfg)


def losses(folder: Path) -> dict[int, float]:
    return {each["iteration"]: each["total_loss"] for each in metrics_of(folder) if "total_loss" in each}


# The other combinations of stage, loader processes and accumulation, with real kills: tests/soak.
@pytest.mark.parametrize(
    ("stage", "workers", "accumulation", "dtype"),
    [
        ("source", 0, 2, "float32"),
        ("estimator", 0, 1, "float32"),
        ("tmt", 2, 1, "float32"),
        ("linear", 2, 2, "float32"),
        ("tmt", 0, 2, "bfloat16"),
    ],
)
def test_resumed_equals_uninterrupted(
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    workers: int,
    accumulation: int,
    dtype: str,
) -> None:
    changes = {"DATALOADER__NUM_WORKERS": workers, "SOLVER__ACCUMULATION_STEPS": accumulation}
    if dtype != "float32":
        monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)  # without it slower, but the same
        changes |= {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": dtype}
    changes |= {"SOLVER__CHECKPOINT_PERIOD": 2, "TEST__EVAL_PERIOD": 2}
    run_stage(small_cfg(stage, tmp_path / "straight", start, **changes))
    run_killed(small_cfg(stage, tmp_path / "killed", start, **changes), 3)
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_0000001.pth"
    run_stage(small_cfg(stage, tmp_path / "killed", start, **changes), resume=True)
    assert not differences(tmp_path / "straight" / FINAL, tmp_path / "killed" / FINAL)
    saved = contents(tmp_path / "killed" / FINAL)
    assert saved["/trainer/iteration"] == 3
    assert any(key.startswith("/trainer/optimizer/state/0/exp_avg") for key in saved)
    assert ("/estimator_training/running_error" in saved) == (stage == "estimator")


@pytest.mark.parametrize("metric", ["", "mIoU"])
def test_an_interrupted_evaluation_is_made_again_once(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """Metrics are written every 20 iterations."""

    def run(name: str, killed_in: int = 0, resume: bool = False) -> int:
        calls = itertools.count(1)

        def test(cfg: Any, model: Any) -> dict[str, Any]:
            if next(calls) == killed_in:
                raise Killed
            return {"bdd100k_sem_seg_val": {"mIoU": 5.0}}

        changes = {"SOLVER__MAX_ITER": 25, "SOLVER__CHECKPOINT_PERIOD": 20, "TEST__EVAL_PERIOD": 20}
        monkeypatch.setattr(Trainer, "test", staticmethod(test))
        with contextlib.suppress(Killed):
            run_stage(small_cfg("full", tmp_path / name, start, **changes, TEST__BEST__METRIC=metric), resume)
        return next(calls) - 1

    def evaluations(name: str) -> list[int]:
        return [line["iteration"] for line in metrics_of(tmp_path / name) if any("/" in scalar for scalar in line)]

    assert run("straight") == 2
    assert run("killed", killed_in=1) == 1
    assert run("killed", killed_in=2, resume=True) == 2  # again, and at the end
    assert run("killed", resume=True) == 1
    assert evaluations("killed") == evaluations("straight") and len(evaluations("straight")) == 2


def test_an_evaluation_whose_scalars_were_not_written_is_made_again(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although best.json has it."""
    monkeypatch.setattr(Trainer, "test", staticmethod(lambda cfg, model: {"bdd100k_sem_seg_val": {"mIoU": 5.0}}))
    changes = {"SOLVER__MAX_ITER": 25, "SOLVER__CHECKPOINT_PERIOD": 15, "TEST__EVAL_PERIOD": 15}
    straight, killed = (
        small_cfg("full", tmp_path / name, start, **changes, TEST__BEST__METRIC="mIoU")
        for name in ("straight", "killed")
    )
    run_stage(straight)
    run_killed(killed, 17)
    assert "after" in (tmp_path / "killed" / "best.json").read_text()
    run_stage(killed, resume=True)
    evaluations = [
        [line["iteration"] for line in metrics_of(tmp_path / name) if any("/" in scalar for scalar in line)]
        for name in ("straight", "killed")
    ]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 2


def test_loader_processes_and_seeds_matter_as_they_should(start: Path, tmp_path: Path) -> None:
    for name, changes in {
        "none": {"DATALOADER__NUM_WORKERS": 0},
        "two": {"DATALOADER__NUM_WORKERS": 2},
        "again": {"DATALOADER__NUM_WORKERS": 0},
        "seed": {"SEED": 4},
    }.items():
        run_stage(small_cfg("full", tmp_path / name, start, SOLVER__MAX_ITER=2, **changes))
    for name in ("two", "again"):
        assert not differences(tmp_path / "none" / FINAL, tmp_path / name / FINAL)
        assert losses(tmp_path / "none") == losses(tmp_path / name)
    assert losses(tmp_path / "none") != losses(tmp_path / "seed")


@pytest.mark.parametrize("removed", ["steps", "position", "optimizer"])
def test_resume_needs_each_of_its_parts(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    if removed == "steps":
        monkeypatch.setattr(trainer, "seed_everything", lambda *entropy: None)
    changes = {"MODEL__MASK_FORMER__DROPOUT": 0.1} if removed == "steps" else {}
    run_stage(small_cfg("full", tmp_path / "straight", start, SOLVER__MAX_ITER=3, **changes))
    run_killed(small_cfg("full", tmp_path / "killed", start, SOLVER__MAX_ITER=3, **changes), 1)
    if removed == "position":
        monkeypatch.setattr(loaders.StepSampler, "__iter__", lambda self: map(self.batch, itertools.count()))
    if removed == "optimizer":
        monkeypatch.setattr(trainer.TrainingStep, "load_state_dict", lambda self, state: None)
    run_stage(small_cfg("full", tmp_path / "killed", start, SOLVER__MAX_ITER=3, **changes), resume=True)
    assert differences(tmp_path / "straight" / FINAL, tmp_path / "killed" / FINAL)


def test_a_drawn_seed_is_kept(start: Path, tmp_path: Path) -> None:
    run_killed(small_cfg("full", tmp_path, start, SEED=-1), 2)
    seed = contents(tmp_path / "model_0000001.pth")["/trainer/seed"]
    run_stage(small_cfg("full", tmp_path, start, SEED=-1), resume=True)
    assert contents(tmp_path / FINAL)["/trainer/seed"] == seed


def test_a_late_start_reads_no_past_image() -> None:
    read: list[int] = []

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        read.append(record["image_id"])
        return record

    def loader() -> torch.utils.data.DataLoader:
        records = [{"file_name": str(i), "image_id": i} for i in range(2975)]
        return loaders._loader(records, mapper, loaders.StepSampler([range(2975)], [16], 1), 0)

    expected = [draw.index for draw in loader().batch_sampler.batch(32_500)]
    late = loader()
    late.batch_sampler.first_step = 32_500
    batch = next(iter(late))
    assert read == expected == [sample["image_id"] for sample in batch]


def test_positions_are_shared_out_whatever_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(processes: int) -> Iterator[set[Any]]:
        monkeypatch.setattr(loaders.comm, "get_world_size", lambda: processes)
        samplers = []
        for rank in range(processes):
            monkeypatch.setattr(loaders.comm, "get_rank", lambda rank=rank: rank)
            samplers.append(loaders.StepSampler([range(5), range(5, 12)], [4, 4], 1))
        for step in range(6):
            yield {draw for sampler in samplers for draw in sampler.batch(step)}

    assert list(draws(1)) == list(draws(2)) == list(draws(4))


def test_a_sample_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with seeded(1, 2):
        first = torch.rand(1)
    with seeded(1, 3):
        assert torch.rand(1) != first
    assert torch.rand(1) == expected


def test_another_max_iter_goes_on_or_is_refused(start: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_stage(small_cfg("full", folder, start, SOLVER__MAX_ITER=2))
    run_stage(small_cfg("full", folder, start, SOLVER__MAX_ITER=3), resume=True)
    rates = {line["iteration"]: line["lr"] for line in metrics_of(folder) if "lr" in line}
    assert rates[2] == pytest.approx(1e-3 * (1 - 2 / 3) ** 0.9)  # of the new schedule, not of the old one
    run_stage(small_cfg("full", folder, start, SOLVER__MAX_ITER=3), resume=True)  # evaluates only
    with refuses("SOLVER.MAX_ITER"):
        run_stage(small_cfg("full", folder, start, SOLVER__MAX_ITER=1), resume=True)


def test_metrics_of_repeated_iterations_are_written_once(start: Path, tmp_path: Path) -> None:
    run_stage(small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=2))
    path = tmp_path / "metrics.json"
    path.write_text(path.read_text() + '{"iteration": 7, "total_loss": 1.0}\n{"iteration": 1, "tot')
    run_stage(small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=3), resume=True)
    iterations = [line["iteration"] for line in metrics_of(tmp_path)]
    assert 7 not in iterations and iterations == sorted(iterations) and 2 in losses(tmp_path)


def test_gradients_do_not_depend_on_the_split(start: Path, tmp_path: Path) -> None:
    def gradients(steps: int) -> tuple[dict[str, float], list[torch.Tensor]]:
        cfg = small_cfg("tmt", tmp_path, start, SOLVER__ACCUMULATION_STEPS=steps, SOLVER__IMS_PER_BATCH=16)
        run, batch = trainer_of(cfg)
        for name, parameter in run.task.named_parameters():
            if name.endswith("sampling_offsets.bias"):
                parameter.data += 0.3  # initially all samples lie on cell borders, where rounding chooses the gradient
        values, _ = run.step.backward(batch)
        return {name: float(value) for name, value in values.items()}, [p.grad.clone() for p in run.step.parameters]

    (whole_losses, whole), (split_losses, split) = gradients(1), gradients(16)
    assert whole_losses == pytest.approx(split_losses, rel=1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(whole, split)) < 1e-5
    assert max(float(a.abs().max()) for a in whole) > 1e-3  # there is a gradient
    with pytest.MonkeyPatch.context() as patch:  # control: without the counts of the whole step
        patch.setattr(trainer.TrainingStep, "_mean_count", lambda self, batches: None)
        _, wrong = gradients(16)
    assert max(float((a - b).abs().max()) for a, b in zip(whole, wrong)) > 1e-4


def trainer_of(cfg: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    """The trainer of a stage, not started, and its first batch."""
    found: list[Trainer] = []

    def keep(self: Trainer) -> dict[str, Any]:
        self.task.train()
        found.append(self)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", keep)
        run_stage(cfg)
    return found[0], next(iter(found[0].data_loader))


def test_accumulation_that_does_not_divide_is_refused(start: Path, tmp_path: Path) -> None:
    for name, steps in (("full", 3), ("estimator", 4)):
        with refuses("SOLVER.ACCUMULATION_STEPS"):
            run_stage(small_cfg(name, tmp_path, start, SOLVER__ACCUMULATION_STEPS=steps))


def test_a_run_that_begins_anew_does_not_go_on_from_the_one_before(start: Path, tmp_path: Path) -> None:
    """Killed before its first checkpoint, and then resumed: the new run continues, from its start."""
    run_stage(small_cfg("full", tmp_path / "new", start, SOLVER__BASE_LR=0.002))
    run_stage(small_cfg("full", tmp_path / "run", start, SOLVER__BASE_LR=0.01))
    run_killed(small_cfg("full", tmp_path / "run", start, SOLVER__BASE_LR=0.02), 2)  # a second one, that got further
    cfg = small_cfg("full", tmp_path / "run", start, SOLVER__BASE_LR=0.002)
    run_killed(cfg, 0)
    assert (tmp_path / "run" / FINAL).is_file()  # the old one stays until it is replaced
    run_stage(cfg, resume=True)
    assert not differences(tmp_path / "new" / FINAL, tmp_path / "run" / FINAL)
    run_stage(cfg, resume=True)  # control: the new one's can be resumed from
    assert not differences(tmp_path / "new" / FINAL, tmp_path / "run" / FINAL)


def test_other_settings_of_a_resumed_run_are_logged(start: Path, tmp_path: Path) -> None:
    run_killed(small_cfg("full", tmp_path, start), 2)
    run_stage(small_cfg("full", tmp_path, start, SOLVER__BASE_LR=0.5, SOLVER__MAX_ITER=5), resume=True)
    log = (tmp_path / "log.txt").read_text()
    assert "SOLVER.BASE_LR" in log and "SOLVER.MAX_ITER" not in log
