"""Every task on the pretended device: `python -m tests.helpers.device_driver FOLDER START`; FOLDER/tasks.json says how
each ended, and what it has measured.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from tests.helpers.models import make_records
from tests.helpers.pretended_device import NAME, DeviceError, OnDevice, pretended_device, register
from tests.helpers.small_runs import small_cfg
from tmt_d2.adaptation import TASKS
from tmt_d2.adaptation.estimator import Estimator
from tmt_d2.adaptation.self_training.task import SelfTraining
from tmt_d2.engine.loading import load_model
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.experiments.scoring import score_checkpoint
from tmt_d2.inference.predictor import Predictor
from tmt_d2.projects.label_selection.pool import image_statistics
from tmt_d2.visualization.inspection import attention_report

SOURCE_TEST = {"DATASETS__SOURCE_TEST": ("cityscapes_sem_seg_val",)}
SOURCE = {"DATASETS__SOURCE_TRAIN": ("cityscapes_sem_seg_train",)} | SOURCE_TEST
CAREFUL = {
    "SOURCE_RATIO": 0.5,
    "FDA_BETA": 0.05,
    "RARE_CLASS_TEMPERATURE": 0.1,
    "CONFIDENCE_THRESHOLD": 0.5,
    "IGNORE_UNCONFIDENT": True,
    "WEIGHT_BY": "image",
    "MIC_WEIGHT": 1.0,
}


class Tasks:
    """What a user can start, each with two steps at most."""

    def __init__(self, folder: Path, start: Path) -> None:
        self.folder, self.start = folder, start

    def all(self) -> dict[str, Callable[[], Any]]:
        tasks: dict[str, Callable[[], Any]] = {name: partial(self.stage, name, name) for name in TASKS}
        tasks |= {
            "tmt-live": partial(self.stage, "tmt-live", LOGGING__IMAGES=1),
            "careful": partial(
                self.self_training, "careful", CAREFUL, MODEL__RESNETS__NORM="BN", SOLVER__ACCUMULATION_STEPS=2
            ),
            "estimated": partial(
                self.stage, "tmt", "estimated", TEST__EVAL_PERIOD=1, TEST__BEST__METRIC="estimated", **SOURCE_TEST
            ),
            "resume": self.resume,
            "evaluation": self.evaluate,
            "predictor": self.predict,
            "inspection": self.inspect,
            "selection": self.select,
            "scores": self.score,
            "collectives": self.collectives,
            "estimator in bfloat16": partial(self.autocast, self.stage, "estimator", dtype="bfloat16"),
            "tmt in bfloat16": partial(self.autocast, self.stage, "tmt", dtype="bfloat16"),
            "leep in float16": partial(self.autocast, self.stage, "leep", dtype="float16"),
        }
        train = partial(self.self_training, settings=CAREFUL)
        tasks["careful in bfloat16"] = partial(self.autocast, train, "careful_bfloat16", dtype="bfloat16")
        return tasks

    def controls(self) -> dict[str, Callable[[], Any]]:
        """What must be noticed."""
        return {
            "discriminators of the stage left behind": partial(self.left_behind, "estimator"),
            "counts of self-training left behind": partial(self.left_behind, "self-training"),
            "a tensor made in memory": self.made_in_memory,
            "a generator of memory": lambda: torch.rand(2, device=NAME, generator=torch.Generator()),
            "numpy": lambda: np.asarray(torch.ones(2, device=NAME)),
            "a number in memory that is written": lambda: torch.zeros(()).add_(torch.ones((), device=NAME)),
            "a number in memory that is joined": lambda: torch.stack([torch.zeros(()), torch.ones((), device=NAME)]),
            "positions on the device": lambda: torch.ones(2)[torch.zeros(1, dtype=torch.long, device=NAME)],
            "a collective": self.collective,
        }

    def cfg(self, name: str, **changes: Any) -> CfgNode:
        return small_cfg(name, self.folder / "used", self.start, MODEL__DEVICE=NAME, **changes)

    def stage(
        self, name: str, output: str = "", dtype: str = "", resume: bool = False, **changes: Any
    ) -> dict[str, Any]:
        changes = {
            "MODEL__DEVICE": NAME,
            "SOLVER__MAX_ITER": 2,
            "SOLVER__CHECKPOINT_PERIOD": 0,
            "TRANSFER__LABEL_COUNT": 0 if name in ("source", "estimator") else 3,
            "TRANSFER__ALIGNMENT__ITERATIONS": 2,
            "TRANSFER__ALIGNMENT__SINKHORN_ITERATIONS": 5,
            "SOLVER__AMP__ENABLED": bool(dtype),
            "SOLVER__AMP__DTYPE": dtype or "float16",
            **changes,
        }
        if name == "estimator":
            changes |= SOURCE_TEST
        output = output or f"{name}_{dtype}"
        return run_stage(small_cfg(name, self.folder / output, self.start, **changes), resume=resume)

    def self_training(self, output: str, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
        changes = {f"SELF_TRAINING__{key}": value for key, value in settings.items()}
        return self.stage("self-training", output, **SOURCE, **changes, **more)

    def autocast(self, train: Callable[..., Any], name: str, dtype: str) -> list[str]:
        """The types of numbers that linear layers gave."""
        found = set()

        def note(module: nn.Module, given: Any, made: Any) -> None:
            if isinstance(module, nn.Linear) and made.requires_grad:
                found.add(str(made.dtype).removeprefix("torch."))

        hook = nn.modules.module.register_module_forward_hook(note)
        try:
            train(name, dtype=dtype)
        finally:
            hook.remove()
        return sorted(found)

    def resume(self) -> dict[str, Any]:
        """One more step of the task before."""
        more = {"MODEL__RESNETS__NORM": "BN", "SOLVER__ACCUMULATION_STEPS": 2, "SOLVER__MAX_ITER": 3}
        return self.self_training("careful", CAREFUL, **more, resume=True)

    def evaluate(self) -> None:
        many = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": (64,), "TEST__SLIDING_WINDOW__ENABLED": True}
        many |= {"TEST__SLIDING_WINDOW__SIZE": (64, 64), "TEST__SLIDING_WINDOW__STRIDE": (48, 48)}
        for changes in ({"TEST__PRECISION": "bfloat16"}, many):
            run_stage(self.cfg("tmt", **changes), eval_only=True)

    def predict(self) -> None:
        prediction = self.predictor()(pixels())
        assert not any(isinstance(each, OnDevice) for each in prediction)

    def predictor(self) -> Predictor:
        cfg = self.cfg("tmt", MODEL__TMT__OUTPUT_TRANSFERABILITY=True)
        return Predictor(cfg, load_model(cfg))

    def inspect(self) -> None:
        attention_report(self.predictor().model, make_records([(64, 96)])[0], pixels(), top=2).numbers()

    def select(self) -> None:
        image_statistics(self.predictor(), [pixels(), pixels()])

    def score(self) -> dict[str, float]:
        splits = ("bdd100k_sem_seg_val", "bdd100k_sem_seg_train"), ("cityscapes_sem_seg_train",)
        return score_checkpoint(self.cfg("tmt"), *splits, images=2, pixels=20, draws=1)

    def collectives(self) -> dict[str, int]:
        """As one of two processes with NCCL, which knows tensors of the device only."""
        two = {"TEST__EVAL_PERIOD": 0, "SOLVER__ACCUMULATION_STEPS": 2, "SOLVER__IMS_PER_BATCH": 8}
        with two_processes() as seen:
            for name in ("estimator", "otce", "tmt"):
                self.stage(name, f"two_{name}", **two)
            self.self_training("two_careful", CAREFUL, **two)
        return seen

    def left_behind(self, name: str) -> None:
        """The buffers of the module around the model stay where they were made."""
        kind = Estimator if name == "estimator" else SelfTraining
        with mock.patch.object(kind, "to", lambda self, *_: self), two_processes():
            self.stage(name, f"{name}_left_behind", SOLVER__IMS_PER_BATCH=8)

    def made_in_memory(self) -> None:
        position = torch.linspace(0, 1, 96)
        tensor = load_model(self.cfg("full")).preprocess(make_records([(64, 96)])).tensor
        assert isinstance(tensor, OnDevice)
        _ = tensor + position

    def collective(self) -> None:
        with two_processes():
            torch.distributed.all_reduce(torch.zeros(1))


def pixels() -> np.ndarray:
    return make_records([(64, 96)])[0]["image"].permute(1, 2, 0).numpy()


@contextlib.contextmanager
def two_processes() -> Iterator[dict[str, int]]:
    """Within it this process believes that another one does the same; yields how often each collective was called."""
    seen = {"all_reduce": 0, "broadcast": 0}

    def collective(name: str, factor: int) -> Callable[..., None]:
        def call(tensor: Tensor, *_: Any, **__: Any) -> None:
            if tensor.device.type != NAME:
                raise DeviceError(f"{name} of a tensor in memory")
            seen[name] += 1
            tensor.mul_(factor)

        return call

    with (
        mock.patch.object(comm, "get_world_size", lambda: 2),
        mock.patch.object(comm, "all_gather", lambda data: [data, data]),
        mock.patch.object(comm, "gather", lambda data, dst=0: [data]),
        mock.patch.object(comm, "synchronize", lambda: None),
        mock.patch("tmt_d2.engine.trainer.create_ddp_model", lambda module, **_: module),
        mock.patch("tmt_d2.utils.signals.stop_if_requested", lambda: None),
        mock.patch.object(torch.distributed, "all_reduce", collective("all_reduce", 2)),
        mock.patch.object(torch.distributed, "broadcast", collective("broadcast", 1)),
    ):
        yield seen


def ending(task: Callable[[], Any]) -> dict[str, Any]:
    """What it gave, or its error's name and traceback."""
    try:
        with pretended_device():
            return {"error": "", "result": task()}
    except Exception as problem:
        return {"error": type(problem).__name__, "result": traceback.format_exc()[-3000:]}


def main(folder: Path, start: Path) -> None:
    torch.set_num_threads(1)
    register()
    tasks = Tasks(folder, start)
    ends = {name: ending(task) for name, task in (tasks.all() | tasks.controls()).items()}
    (folder / "tasks.json").write_text(json.dumps(ends, default=repr))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
