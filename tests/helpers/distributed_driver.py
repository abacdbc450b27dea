"""What the processes of test_distributed do: `python -m tests.helpers.distributed_driver SCENARIO FOLDER START [N]`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from tests.helpers.small_runs import small_cfg
from tmt_d2.adaptation import alignment
from tmt_d2.adaptation.estimator import Estimator
from tmt_d2.adaptation.self_training.task import SelfTraining
from tmt_d2.engine.launch import launch
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.step import TrainingStep
from tmt_d2.errors import UserError, one_line_errors
from tmt_d2.evaluation.semantic import SemanticEvaluator

ONE_LABEL = ("estimator", "leep", "self-training", "tmt")
STAGES = {"source": 1, "estimator": 1, "linear": 2, "tmt": 2, "self-training": 2}  # name: accumulation steps


def changes(accumulation: int, stage: str = "") -> dict[str, Any]:
    target = "val" if stage == "estimator" else "train"  # more images than processes, but none that E has seen
    return {
        "SOLVER__IMS_PER_BATCH": 8,
        "SOLVER__ACCUMULATION_STEPS": accumulation,
        "SOLVER__MAX_ITER": 3,
        "SOLVER__CHECKPOINT_PERIOD": 0,
        "TRANSFER__ESTIMATOR__HELD_OUT": 2,
        "TRANSFER__LABEL_COUNT": 2 if stage == "self-training" else 0,
        "SELF_TRAINING__CONFIDENCE_THRESHOLD": 0.06,
        "SELF_TRAINING__WEIGHT_BY": "pixel",
        "SELF_TRAINING__IGNORE_UNCONFIDENT": True,
        "DATASETS__TEST": ("cityscapes_sem_seg_val", f"bdd100k_sem_seg_{target}"),
    }


def run_stages(folder: Path, start: Path) -> None:
    for stage, accumulation in STAGES.items():
        run_stage(small_cfg(stage, folder / stage, start, **changes(accumulation, stage)))
    stop_discriminators(folder / "stopped", start)
    for method in ("leep", "otce"):
        align(method, folder / method, start)
    run_stage(small_cfg("tmt", folder / "evaluation", start, **changes(1)), eval_only=True)
    run_stage(small_cfg("source", folder / "statistics", **with_statistics()))


def stop_discriminators(folder: Path, start: Path) -> None:
    """The estimator stage, in which all levels but the first have reached their target error after the first step."""
    track = Estimator._track_error
    steps = iter(range(10**6))

    def reach(self: Estimator, level: int, *seen: Any) -> None:
        track(self, level, *seen)
        self.state.running_error[level] = 0.1 if level and next(steps) > 3 else 0.5

    Estimator._track_error = reach  # type: ignore[method-assign]
    options = changes(2, "estimator") | {"TRANSFER__ESTIMATOR__TARGET_ERROR": 0.2, "SOLVER__CHECKPOINT_PERIOD": 1}
    run_stage(small_cfg("estimator", folder, start, **options))
    Estimator._track_error = track  # type: ignore[method-assign]


def align(method: str, folder: Path, start: Path) -> None:
    """Alignment and fine-tuning; the second process finds no labeled pixel in its first step."""
    draw, calls = alignment.draw_pixels, iter(range(10**6))

    def draw_none_at_first(labels: torch.Tensor, number: int) -> alignment.Pixels:
        return draw(labels, 0 if comm.get_rank() == 1 and next(calls) == 0 else number)

    alignment.draw_pixels = draw_none_at_first  # type: ignore[assignment]
    options = changes(1) | {"TRANSFER__ALIGNMENT__ITERATIONS": 3, "TRANSFER__ALIGNMENT__PIXELS": 160}
    run_stage(small_cfg(method, folder, start, **options | {"SOLVER__MAX_ITER": 1}))
    alignment.draw_pixels = draw


def with_statistics() -> dict[str, Any]:
    """Batch normalization, whose statistics each process gathers alone."""
    return changes(1) | {"MODEL__RESNETS__NORM": "BN"}


def teachers(folder: Path, start: Path) -> None:
    """Self-training with batch normalization; each process writes the teacher's statistics after every step."""
    update, seen = SelfTraining.after_step, []

    def noting(self: SelfTraining) -> None:
        update(self)
        buffers = dict(self.teacher.named_buffers())
        seen.append([float(value.sum()) for name, value in buffers.items() if name.endswith("running_mean")])

    SelfTraining.after_step = noting  # type: ignore[method-assign]
    run_stage(small_cfg("self-training", folder, start, **with_statistics() | changes(1, "self-training")))
    SelfTraining.after_step = update  # type: ignore[method-assign]
    (folder / f"teacher{comm.get_rank()}.json").write_text(json.dumps(seen))


def in_step(iteration: int, rank: int, act: Any) -> None:
    """Call ``act`` with the losses of one step of one process; its result, if any, replaces them."""
    backward, steps = TrainingStep.backward, iter(range(10**6))

    def acting(self: TrainingStep, batch: Any) -> Any:
        losses, norm = backward(self, batch)
        if next(steps) == iteration and comm.get_rank() == rank:
            losses = act(losses) or losses
        return losses, norm

    TrainingStep.backward = acting  # type: ignore[method-assign]


def equal_then_failing(folder: Path, start: Path) -> None:
    """The stages; then a NaN in the second process; then an error in it, which ends everything."""
    torch.set_num_threads(1)
    run_stages(folder, start)
    teachers(folder / "teachers", start)
    original = TrainingStep.backward
    in_step(1, 1, lambda losses: losses | {"loss_mask": losses["loss_mask"] * torch.nan})
    try:
        run_stage(small_cfg("full", folder / "nan", start, **changes(1)))
    except FloatingPointError as error:
        (folder / f"nan{comm.get_rank()}.txt").write_text(str(error))
    TrainingStep.backward = original  # type: ignore[method-assign]

    def fail(losses: Any) -> None:
        raise UserError("the images of process 1 are gone")

    in_step(1, 1, fail)
    run_stage(small_cfg("full", folder / "failing", start, **changes(1)))


def stopping(folder: Path, start: Path) -> None:
    """In an evaluation the second process alone is asked to stop. In another run, in step 1, it signals the launcher,
    which passes it on; without a launcher, itself."""
    torch.set_num_threads(1)
    process, whom = SemanticEvaluator.process, os.getpid() if "RANK" in os.environ else os.getppid()

    def signalling(self: SemanticEvaluator, inputs: Any, outputs: Any) -> None:
        process(self, inputs, outputs)
        if comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    SemanticEvaluator.process = signalling  # type: ignore[method-assign]
    try:
        run_stage(small_cfg("full", folder / "evaluating", start, **changes(1), TEST__EVAL_PERIOD=1))
    except SystemExit as exit_:
        (folder / f"status{comm.get_rank()}.txt").write_text(str(exit_.code))
    SemanticEvaluator.process = process  # type: ignore[method-assign]
    in_step(1, 1, lambda losses: os.kill(whom, signal.SIGTERM))
    options = changes(1) | {"SOLVER__MAX_ITER": 500}
    run_stage(small_cfg("full", folder / "stopping", start, **options))


def stages_only(folder: Path, start: Path) -> None:
    torch.set_num_threads(1)
    run_stages(folder, start)


def one_label(folder: Path, start: Path) -> None:
    """Tasks of every kind of loader with one labeled image, one to test on, and more processes than that; the best
    weights by an estimate; then source training on a custom data set, which only the launched processes register."""
    torch.set_num_threads(1)
    for name in ONE_LABEL:
        options: dict[str, Any] = {
            "SOLVER__IMS_PER_BATCH": 4 * comm.get_world_size(),
            "SOLVER__MAX_ITER": 1,
            "TRANSFER__LABEL_COUNT": 1,
            "TRANSFER__MAP_CACHE": str(folder / "maps"),  # of its own, so that one is missing
            "TRANSFER__ALIGNMENT__ITERATIONS": 1,
        }
        if name == "estimator":
            options["DATASETS__SOURCE_TEST"] = ("cityscapes_sem_seg_val",)
        run_stage(small_cfg(name, folder / name, start, **options))
    estimated: dict[str, Any] = {
        "TEST__BEST__METRIC": "estimated",
        "TEST__EVAL_PERIOD": 1,
        "DATASETS__SOURCE_TEST": ("cityscapes_sem_seg_val",),
        "SOLVER__IMS_PER_BATCH": 4 * comm.get_world_size(),
        "SOLVER__MAX_ITER": 2,
        "TRANSFER__MAP_CACHE": str(folder / "maps"),
    }
    run_stage(small_cfg("tmt", folder / "estimated", start, **estimated))
    own = {
        "DATASETS__CUSTOM": (str(start.parent / "own.yaml"),),
        "DATASETS__TRAIN": ("own_sem_seg_train",),
        "DATASETS__TEST": ("own_sem_seg_val",),
    }
    run_stage(small_cfg("source", folder / "own", **own, SOLVER__IMS_PER_BATCH=comm.get_world_size()))


if __name__ == "__main__":
    scenarios = {"fail": equal_then_failing, "stop": stopping, "stages": stages_only, "one_label": one_label}
    with one_line_errors():
        processes = int(sys.argv[4]) if len(sys.argv) > 4 else 2
        launch(scenarios[sys.argv[1]], processes, args=(Path(sys.argv[2]), Path(sys.argv[3])))
