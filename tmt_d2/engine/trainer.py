"""Detectron2's training loop around a task.

Step i is a function of the weights after step i - 1, of the seed and of i: its images, their augmentation and all other
random draws are made from (seed, i). So a checkpoint holds no random state, and a resumed run equals an uninterrupted
one bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import HookBase, TrainerBase, create_ddp_model
from detectron2.engine.hooks import IterationTimer, LRScheduler, PeriodicWriter
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tmt_d2.adaptation.checks import classes_of_run
from tmt_d2.adaptation.map_cache import reads_maps
from tmt_d2.adaptation.task import Scores, Task, task_of
from tmt_d2.data.datasets.registration import has_labels, labeled_records
from tmt_d2.data.loaders import MappedRecords, StepSampler
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import DataError
from tmt_d2.engine.anomaly import find_anomalies
from tmt_d2.engine.bad_samples import BadSamples
from tmt_d2.engine.best import Best
from tmt_d2.engine.checkpoint.checkpointer import FINAL, TMTCheckpointer, refuse_another_estimator
from tmt_d2.engine.hooks.evaluation import Evaluation
from tmt_d2.engine.hooks.saving import PeriodicSaving
from tmt_d2.engine.optimizer import build_lr_scheduler, build_optimizer
from tmt_d2.engine.step import TrainingStep, clipping
from tmt_d2.engine.writers import build_writers, forget_metrics
from tmt_d2.errors import USER_ERRORS, UserError
from tmt_d2.estimation.estimate import estimated_metrics
from tmt_d2.evaluation.inference import build_inference
from tmt_d2.evaluation.semantic import ESTIMATED, SemanticEvaluator, evaluate_split, metrics_table
from tmt_d2.modeling.folding import fold_batch_norm
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.precision import bfloat16_where_faster
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils import signals
from tmt_d2.utils.logs import log_file
from tmt_d2.utils.randomness import seed_everything

logger = logging.getLogger(__name__)

ONE_VALUE = "Expected more than 1 value per channel"  # PyTorch's batch normalization
STEP_STREAM = 1_000_003  # separates the random draws of steps from those of samples
GRADIENT_NORM, STOP = "gradient norm", "stop"  # beside the losses of a step


class Trainer(TrainerBase):
    """Trains the task that TRANSFER.METHOD names. Override the class methods to use parts of your own.

    Attributes:
        task: the module that is trained. model: its part that is saved and evaluated.
    """

    def __init__(self, cfg: CfgNode, hooks: Sequence[HookBase] = (), task: type[Task] | None = None) -> None:
        """
        Args:
            cfg: checked, with the number of classes of the data sets; see ``run_stage``.
            hooks: called after the evaluation and before scalars are written.
            task: instead of the one of ``cfg``, such as one that prepares it.
        """
        super().__init__()
        self.cfg, self.extra_hooks = cfg, list(hooks)
        self.model = cast(MaskFormer, self.build_model(cfg))
        self.model.classes = classes_of_run(cfg)
        self.task = (task or task_of(cfg)).from_config(cfg, self.model)
        self.data_loader = self.build_train_loader(cfg) if task is None else task.build_train_loader(cfg)
        self.sampler = cast(StepSampler, self.data_loader.batch_sampler)
        records = cast(MappedRecords, self.data_loader.dataset)
        _check_micro_batches(self.sampler, cfg.SOLVER.ACCUMULATION_STEPS)
        self.task.to(next(self.model.parameters()).device)  # its own state was made on the CPU
        self.optimizer = self.build_optimizer(cfg, self.task)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        if cfg.SOLVER.DETECT_ANOMALY:
            find_anomalies(self.task)
        devices = None if cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
        clip = cfg.SOLVER.CLIP_GRADIENTS
        self.step = TrainingStep(
            create_ddp_model(self.task, broadcast_buffers=False, device_ids=devices),
            self.optimizer,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            amp_dtype=_amp_dtype(cfg),
            clip=clipping(clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE),
        )
        self.bad_samples = BadSamples(records.images, cfg.DATALOADER.MAX_BAD_FRACTION)
        self.checkpointer = TMTCheckpointer(
            self.model,
            cfg.OUTPUT_DIR,
            save_to_disk=comm.is_main_process(),
            require_estimator=isinstance(self.model, TransferableMaskFormer) and not self.task.requires_head,
            require_head=self.task.requires_head,
            keep=cfg.SOLVER.CHECKPOINTS_KEPT,
            reinit_class_head=cfg.TRANSFER.REINIT_CLASS_HEAD,
            trainer=weakref.proxy(self),
        )
        if self.task.state is not None:
            self.checkpointer.add_checkpointable(self.task.state_name, self.task.state)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.done = self.saved = -1  # the last iteration that is completed, and that is in a checkpoint
        self.best = Best.from_config(cfg) if self.task.measures_splits else None
        evaluate = partial(self.task.evaluate, cfg, partial(self.test, cfg))
        self.evaluation = Evaluation(cfg.TEST.EVAL_PERIOD, evaluate, self.best)
        self._writer: PeriodicWriter | None = None

    # --- parts to override

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return build_model(cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Return endless batches of ``MappedRecords``, whose order is a ``StepSampler``'s."""
        return task_of(cfg).build_train_loader(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """model: the task."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_detection_test_loader(
            labeled_records([dataset_name]),
            mapper=SemanticMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str) -> SemanticEvaluator:
        return SemanticEvaluator(dataset_name, output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, folder: str = "inference", title: str = "") -> Scores:
        """Return the metrics of every split of DATASETS.TEST; of a split without labels at most the estimated one.

        folder: below OUTPUT_DIR, for other files of the evaluator. title: name of the model in the log.
        """
        results: Scores = {}
        inference = build_inference(cfg, fold_batch_norm(model))
        for name in cfg.DATASETS.TEST:
            results[name] = {}
            if has_labels(name):
                evaluator = cls.build_evaluator(cfg, name, f"{cfg.OUTPUT_DIR}/{folder}/{name}")
                loader = signals.Stoppable(cls.build_test_loader(cfg, name))
                results[name] = evaluate_split(inference, loader, evaluator).get("sem_seg", {})
                if results[name]:
                    table = metrics_table(results[name], evaluator.classes)
                    logger.info("%s%s, in percent:\n%s", name, title and f" by the {title}", table)
        if cfg.TEST.BEST.METRIC == ESTIMATED and comm.is_main_process():
            with signals.interruptible():
                estimates = estimated_metrics(cfg, cast(MaskFormer, model), cfg.DATASETS.TEST)
            for name, values in estimates.items():
                results[name] = {**results[name], **values}
                of_model = title and f" by the {title}"
                logger.info("%s%s: mIoU %.1f, estimated without labels", name, of_model, values[ESTIMATED])
        return results

    def build_hooks(self) -> list[HookBase]:
        saving = PeriodicSaving(self.cfg.SOLVER.CHECKPOINT_PERIOD)
        registered: list[HookBase] = [IterationTimer(), LRScheduler(), saving, self.evaluation, *self.extra_hooks]
        if comm.is_main_process():
            self._writer = PeriodicWriter(build_writers(self.cfg), period=20)
            registered.append(self._writer)
        return registered

    # --- a run

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the newest usable checkpoint in OUTPUT_DIR; if there is none, load MODEL.WEIGHTS.

        A task with a preparation is prepared first, and starts from the result.

        Raises:
            UserError: the checkpoint holds no state of a trainer, or is beyond SOLVER.MAX_ITER.
        """
        cfg = self.cfg
        resumes = resume and self.checkpointer.has_checkpoint()
        if resumes and self.task.fine_tunes and reads_maps(cfg):
            refuse_another_estimator(cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR)
        self.task.load_references(cfg, partial(load_weights, cfg))
        weights = cfg.MODEL.WEIGHTS if resumes else self._prepare(resume)
        self.checkpointer.resume_or_load(weights, resume=resumes)
        if resumes:
            self._resume()
        else:
            if self.best and comm.is_main_process():
                self.best.forget()
            if self.task.starts_from and not self.checkpointer.found_head:
                logger.warning("MODEL.WEIGHTS %s holds no segmentation head: it begins with a random one", weights)
        self.task.begin(self.start_iter)

    def _prepare(self, resume: bool) -> str:
        """Run the task's preparation, if it has one; return the file with the weights to start from."""
        preparation = self.task.preparation(self.cfg)
        if preparation is None:
            return self.cfg.MODEL.WEIGHTS
        task, cfg = preparation
        with log_file(cfg.OUTPUT_DIR):
            trainer = type(self)(cfg, task=task)
            trainer.resume_or_load(resume)
            trainer.train()
        return f"{cfg.OUTPUT_DIR}/{FINAL}.pth"

    def _resume(self) -> None:
        if self.done < 0:
            raise UserError("its checkpoint holds weights only, so it cannot be resumed", key=self.cfg.OUTPUT_DIR)
        self.start_iter, self.saved = self.done + 1, self.done
        if self.best:
            self.best.read(self.start_iter)
        if self.start_iter > self.max_iter:
            raise UserError(
                f"{self.cfg.OUTPUT_DIR} holds a checkpoint after {self.start_iter} iterations",
                key="SOLVER.MAX_ITER",
                value=self.max_iter,
                hint="raise it, or choose another OUTPUT_DIR",
            )
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr()):
            group["lr"] = lr  # MAX_ITER may have changed
        if self.start_iter == self.max_iter:
            logger.info("iteration %d of %d: nothing left to train", self.start_iter, self.max_iter)

    def train(self) -> dict[str, Any]:
        """Train to the end and return the final results.

        Raises:
            Stopped: on SIGTERM or SIGUSR1, with a checkpoint of the last step on disk.
            FloatingPointError: a loss or the gradient is not finite; the state before that step is on disk.
            DataError: too many training images are unreadable, or an image to test on; the state before is on disk.
        """
        if not self.start_iter:
            self.checkpointer.supersede()
        if comm.is_main_process():
            forget_metrics(self.cfg.OUTPUT_DIR, self.start_iter)
        self.register_hooks(self.build_hooks())
        self.task.train()
        self.seed, self.sampler.first_step = self.sampler.seed, self.start_iter
        self._batches: Iterator[list[dict[str, Any]]] = iter(())
        if self.start_iter < self.max_iter:
            self._batches = iter(self.data_loader)
        logger.info("training from iteration %d to %d", self.start_iter, self.max_iter)
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                for iteration in range(self.start_iter, self.max_iter):
                    if self.evaluation.stops_early():
                        self.save_checkpoint(FINAL)
                        break
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                if not (self.evaluation.stopped and self.evaluation.results):
                    self.iter = self.max_iter  # evaluate at the end; after an early stop the last evaluation is final
                self.after_train()
            except signals.Stopped:
                self.save_checkpoint()
                self.bad_samples.write_summary(self.cfg.OUTPUT_DIR)
                logger.warning(
                    "%s: stopping after %d of %d iterations; they are saved, and a run resumed in %s continues there",
                    signals.reason(),
                    self.done + 1,
                    self.max_iter,
                    self.cfg.OUTPUT_DIR,
                )
                if self._writer is not None:
                    self._writer.after_train()
                raise
            except Exception as error:
                if isinstance(error, DataError) and comm.get_world_size() == 1:
                    self.save_checkpoint()  # other processes may not have failed, and would not save
                with suppress(OSError):  # the first error counts
                    self.bad_samples.write_summary(self.cfg.OUTPUT_DIR, together=False)
                if not isinstance(error, USER_ERRORS):
                    logger.exception("iteration %d failed", self.iter)
                raise
            finally:
                del self._batches  # ends the loader's processes
        self.bad_samples.write_summary(self.cfg.OUTPUT_DIR)
        return self.evaluation.results

    def run_step(self) -> None:
        seed_everything(self.seed, STEP_STREAM, self.iter, comm.get_rank())
        start = time.perf_counter()
        with signals.interruptible():
            batch = next(self._batches)
        waited = time.perf_counter() - start
        self.bad_samples.note(batch)
        try:
            losses, norm = self.step.backward(batch)
        except FloatingPointError as error:  # of find_anomalies
            raise FloatingPointError(f"iteration {self.iter}: {error}; images: {_file_names(batch)}") from error
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            raise UserError(
                "a forward pass has one image, and batch normalization of the coarsest map needs more than one value",
                key="INPUT.CROP.SIZE",
                value=tuple(self.cfg.INPUT.CROP.SIZE),
                hint="choose larger crops or more SOLVER.IMS_PER_BATCH",
            ) from error
        stop = torch.full_like(norm, float(signals.requested()))
        means = _mean_over_processes(losses | {GRADIENT_NORM: norm, STOP: stop})
        self.stop_agreed, gradient_norm = means.pop(STOP) > 0, means.pop(GRADIENT_NORM)
        total = sum(means.values())
        if not math.isfinite(total) or not (math.isfinite(gradient_norm) or self.step.may_overflow()):
            self._refuse(batch, losses)
        self.step.update()
        self.done = self.iter
        self.storage.put_scalars(total_loss=total, gradient_norm=gradient_norm, data_time=waited, **means)

    def _refuse(self, batch: list[dict[str, Any]], losses: dict[str, Tensor]) -> None:
        wrong = [name for name, value in losses.items() if not torch.isfinite(value)]
        if not wrong:
            gradients = ((name, p.grad) for name, p in self.task.named_parameters() if p.grad is not None)
            wrong = [f"the gradient of {name}" for name, value in gradients if not torch.isfinite(value).all()]
        processes = comm.all_gather((wrong, _file_names(batch)))
        wrong = list(dict.fromkeys(name for each, _ in processes for name in each))
        self.step.take_back()
        name = f"not_finite_{self.iter:07d}"
        self.save_checkpoint(name)
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise FloatingPointError(
            f"iteration {self.iter}: {wrong[0] if wrong else 'the loss'}{more} is not finite; images: "
            f"{', '.join(files for _, files in processes)}; the state before this step is in "
            f"{self.cfg.OUTPUT_DIR}/{name}.pth; --detect-anomaly finds the module"
        )

    def save_checkpoint(self, name: str | None = None) -> None:
        """Save the state after the last completed step, in all processes together.

        name: by default that of the step, and nothing is written if that is saved already.
        """
        if name is None:
            if self.saved == self.done:
                return
            name = FINAL if self.done + 1 == self.max_iter else f"model_{self.done:07d}"
            self.saved = self.done
        self.share_buffers()
        self.checkpointer.save(name)
        comm.synchronize()  # a process that exits before the file is complete would end the others

    def share_buffers(self) -> None:
        """Give all processes the normalization statistics of the first one."""
        if comm.get_world_size() > 1:
            for buffer in self.task.buffers():
                torch.distributed.broadcast(buffer, 0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.done,
            "seed": self.sampler.seed,
            "scheduler": self.scheduler.state_dict(),
            "bad_samples": self.bad_samples.reasons,
            **self.step.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["iteration"]
        if self.cfg.SEED < 0:
            self.sampler.seed = state["seed"]
        self.scheduler.load_state_dict(state["scheduler"])
        self.bad_samples.restore(state["bad_samples"])
        self.step.load_state_dict(state)


def _file_names(batch: list[dict[str, Any]]) -> str:
    return ", ".join(record.get("file_name", "?") for record in batch)


def _amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE == "bfloat16":
        return bfloat16_where_faster(cfg.MODEL.DEVICE, "SOLVER.AMP.DTYPE")
    if cfg.MODEL.DEVICE == "cpu":
        logger.info("SOLVER.AMP.DTYPE float16 is for GPUs: training in float32; bfloat16 works on some CPUs, too")
        return None
    return torch.float16


def _check_micro_batches(sampler: StepSampler, accumulation_steps: int) -> None:
    shares = [share // sampler.processes for share in sampler.shares if share]
    if any(share % accumulation_steps for share in shares):
        raise UserError(
            f"it does not divide the {' + '.join(map(str, shares))} images of a process",
            key="SOLVER.ACCUMULATION_STEPS",
            value=accumulation_steps,
        )


def load_weights(cfg: CfgNode, path: str, model: nn.Module) -> None:
    """Put the weights of a trained model into a model."""
    reinit = cfg.TRANSFER.REINIT_CLASS_HEAD
    checkpointer = TMTCheckpointer(model, require_estimator=True, require_head=True, reinit_class_head=reinit)
    checkpointer.load(path, checkpointables=[])


def _mean_over_processes(values: dict[str, Tensor]) -> dict[str, float]:
    """Return the means of scalars over processes, the same in each, by one transfer."""
    together = torch.stack(list(values.values())).float()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(together)
        together /= comm.get_world_size()
    return dict(zip(values, together.tolist()))
