"""The trainer of every stage: Detectron2's loop and hooks around a model that returns weighted losses."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.utils import comm
from torch import nn

from ..data.mapper import SemanticMapper
from ..evaluation.inference import build_inference
from ..evaluation.semantic import SemanticEvaluator, evaluate_split
from .checkpoint import TMTCheckpointer
from .optimizer import build_lr_scheduler, build_optimizer

logger = logging.getLogger(__name__)


class StageTrainer(DefaultTrainer):
    """Trains ``training_module``, checkpoints ``model``; they differ in the estimator stage only."""

    def __init__(
        self,
        cfg: CfgNode,
        *,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        training_module: nn.Module | None = None,
        evaluate: Callable[[], dict[str, Any]] | None = None,
        require_estimator: bool = False,
    ):
        """
        Args:
            model: what is saved and evaluated.
            training_module: batch -> dict of weighted losses; ``model`` itself by default.
            data_loader: endless batches.
            evaluate: -> nested results for the logs, every TEST.EVAL_PERIOD iterations and at the end; the metrics of
                DATASETS.TEST by default.
            require_estimator: refuse to start from a checkpoint without trained discriminators.
        """
        TrainerBase.__init__(self)
        module = model if training_module is None else training_module
        optimizer = build_optimizer(cfg, module)
        module = create_ddp_model(module, broadcast_buffers=False)
        amp = cfg.SOLVER.AMP.ENABLED
        if amp and cfg.MODEL.DEVICE == "cpu":
            logger.info("SOLVER.AMP.ENABLED has no effect on the CPU: training in float32")
            amp = False
        self._trainer = (AMPTrainer if amp else SimpleTrainer)(module, data_loader, optimizer)
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TMTCheckpointer(
            model, cfg.OUTPUT_DIR, require_estimator=require_estimator, trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self._evaluate = evaluate or (lambda: evaluate_model(cfg, model))
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[hooks.HookBase]:
        cfg = self.cfg

        def evaluate() -> dict[str, Any]:
            self._last_eval_results = self._evaluate()
            return _nested_scalars(self._last_eval_results)

        registered = [hooks.IterationTimer(), hooks.LRScheduler()]
        if comm.is_main_process():
            registered.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        registered.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate))
        if comm.is_main_process():
            registered.append(hooks.PeriodicWriter(default_writers(cfg.OUTPUT_DIR, self.max_iter), period=20))
        return registered

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if self.start_iter >= self.max_iter:
            logger.info("iteration %d of %d: nothing left to train", self.start_iter, self.max_iter)

    def train(self) -> dict[str, Any]:
        """Train to the end and return the final results (evaluated once, by the hook after the last step)."""
        TrainerBase.train(self, self.start_iter, self.max_iter)
        return getattr(self, "_last_eval_results", {})


def _nested_scalars(value: Any) -> Any:
    """Lists as dictionaries by position: what Detectron2's event storage can log."""
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    return {key: _nested_scalars(item) for key, item in value.items()} if isinstance(value, dict) else value


def evaluate_model(cfg: CfgNode, model: nn.Module) -> dict[str, dict[str, float]]:
    """Metrics of every split of DATASETS.TEST: {split: {"mIoU", "fwIoU", "mACC", "pACC", "IoU-road", ...}}."""
    results = {}
    for name in cfg.DATASETS.TEST:
        loader = build_detection_test_loader(
            cfg, name, mapper=SemanticMapper(cfg, is_train=False), num_workers=cfg.DATALOADER.NUM_WORKERS
        )
        evaluator = SemanticEvaluator(name, f"{cfg.OUTPUT_DIR}/inference/{name}")
        results[name] = evaluate_split(build_inference(cfg, model), loader, evaluator).get("sem_seg", {})
    return results
