"""The interface between a task (what is trained, on which splits, how it is measured) and the engine that runs it.

TRANSFER.METHOD names a task. A *variant* is a config file that changes keys of a task; it needs no code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tmt_d2.data.datasets.registration import labeled_records
from tmt_d2.data.labeled import LabelChoice
from tmt_d2.data.loaders import build_train_loader
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.errors import UserError, did_you_mean

Record = dict[str, Any]
Scores = dict[str, dict[str, float]]  # {split: {metric: value}}
Load = Callable[..., None]  # (path, model): put the weights of a file into a model


class Test(Protocol):
    """The evaluation on every split of DATASETS.TEST."""

    def __call__(self, model: nn.Module, folder: str = "inference", title: str = "") -> Scores:
        """folder: below OUTPUT_DIR. title: name of the model in the log."""


@dataclass(frozen=True)
class Split:
    """A key of DATASETS that a task reads.

    needs_labels: images without a label are an error. defines_classes: its class list is the model's.
    hint: what to do if its files are missing.
    """

    key: str
    needs_labels: bool = True
    defines_classes: bool = True
    hint: str = ""


class Task(nn.Module):
    """The base of all tasks: train the whole model on the labels of DATASETS.TRAIN.

    Class methods answer questions about a config before anything is built. An instance is the module that is trained:
    the model, and whatever else learns or is counted.

    Attributes:
        name: value of TRANSFER.METHOD.
        about: one line for tables and help.
        starts_from: the task whose checkpoint MODEL.WEIGHTS is; empty: a pretrained backbone.
        architecture: MODEL.META_ARCHITECTURE; empty: any.
        trains: prefixes of the parameters that learn; none: all.
        fine_tunes: it adapts a segmentation model, so experiments can compare it with others.
        measures_splits: its results are the metrics of DATASETS.TEST.
        requires_head: refuse a checkpoint without a trained segmentation head.
        results: name of the file with the results, in OUTPUT_DIR.
        model: the model that is saved and evaluated.
        state: what a checkpoint holds beside the model, in the entry ``state_name``.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    starts_from: ClassVar[str] = "source"
    architecture: ClassVar[str] = "MaskFormer"
    trains: ClassVar[tuple[str, ...]] = ()
    fine_tunes: ClassVar[bool] = True
    measures_splits: ClassVar[bool] = True
    requires_head: ClassVar[bool] = False
    results: ClassVar[str] = "evaluation.json"
    state_name: ClassVar[str] = "method_training"
    test_splits: ClassVar[tuple[Split, ...]] = (Split("TEST"),)

    # --- before anything is built

    @classmethod
    def training_splits(cls, cfg: CfgNode) -> list[Split]:
        """Return the keys of DATASETS that training reads."""
        return [Split("TRAIN")]

    @classmethod
    def check(cls, cfg: CfgNode, eval_only: bool = False) -> None:
        """Check what only this task knows; all splits are registered and their files listed by then.

        Raises:
            UserError: names the key.
        """

    @classmethod
    def learns_from_target_labels(cls, cfg: CfgNode) -> bool:
        """Return False if no label of DATASETS.TRAIN is read."""
        return True

    @classmethod
    def labeled_images(cls, cfg: CfgNode) -> dict[str, list[Record]]:
        """Return the images whose labels are learned from, by config key."""
        return {"DATASETS.TRAIN": labeled_records(cfg.DATASETS.TRAIN)}

    @classmethod
    def preparation(cls, cfg: CfgNode) -> tuple[type[Task], CfgNode] | None:
        """Return a task to run first, whose final weights this one starts from, with its config."""
        return None

    @classmethod
    def label_choice(cls, cfg: CfgNode) -> LabelChoice | None:
        """Return which labels of DATASETS.TRAIN are used; None: all."""
        return None

    @classmethod
    def build_mapper(cls, cfg: CfgNode) -> SemanticMapper:
        return SemanticMapper(cfg, is_train=True)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Return endless batches; its batch sampler is a ``StepSampler``."""
        return build_train_loader(
            cfg.DATASETS.TRAIN,
            cls.build_mapper(cfg),
            cfg.SOLVER.IMS_PER_BATCH,
            labels=cls.label_choice(cfg),
            **loader_options(cfg),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> Task:
        """Return the task around ``model``, and freeze what does not learn."""
        return cls(model)

    @classmethod
    def evaluate_checkpoint(
        cls, cfg: CfgNode, model: nn.Module, checkpoint: Mapping[str, Any], test: Test
    ) -> dict[str, Any]:
        """Return the results of a trained model, without training. checkpoint: its other entries."""
        return test(model)

    # --- one step, in this order

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.state: nn.Module | None = None

    def prepare_batch(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that the losses are taken on; the given ones stay as they are."""
        return list(records)

    def count_masks(self, records: Sequence[Record]) -> int | list[int]:
        """Count the masks by which the losses are divided, in prepared records; a list for several groups of losses."""
        return self.model.count_masks(records)

    def losses(self, records: Sequence[Record], num_masks: Tensor | None = None) -> dict[str, Tensor]:
        """Return the weighted losses of prepared records.

        num_masks: mean of ``count_masks`` over the micro-batches and processes of a step, if there are several.
        """
        return self.model(records, num_masks)

    def forward(self, records: Sequence[Record], num_masks: Tensor | None = None) -> dict[str, Tensor]:
        return self.losses(records, num_masks)

    def after_backward(self) -> None:
        """Called when the gradients of a step are complete; a parameter whose gradient is None is not updated."""

    def after_step(self) -> None:
        """Called after the optimizer's step."""

    # --- one run

    def load_references(self, cfg: CfgNode, load: Load) -> None:
        """Read what comes from other files than the checkpoint; called before the model's weights are loaded."""

    def begin(self, start_iter: int) -> None:
        """Called with the weights loaded, before the first step; start_iter: 0, or where the run is resumed."""

    def evaluate(self, cfg: CfgNode, test: Test) -> dict[str, Any]:
        """Return nested results, for the log and for the file of results."""
        return test(self.model)


TASKS: dict[str, type[Task]] = {}


def register(task: type[Task]) -> type[Task]:
    """Make a task known to TRANSFER.METHOD; also a decorator for tasks of your own (see TMT_IMPORT)."""
    TASKS[task.name] = task
    return task


def task_of(cfg: CfgNode) -> type[Task]:
    """
    Raises:
        UserError: TRANSFER.METHOD is no task.
    """
    name = cfg.TRANSFER.METHOD
    if name not in TASKS:
        choices = f"choose one of {', '.join(TASKS)}{did_you_mean(name, TASKS)}"
        raise UserError(key="TRANSFER.METHOD", value=name, hint=choices)
    return TASKS[name]


def loader_options(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments that all training loaders have in common."""
    return {"seed": cfg.SEED if cfg.SEED >= 0 else None, "num_workers": cfg.DATALOADER.NUM_WORKERS}
