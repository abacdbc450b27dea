"""The trainer of every stage: Detectron2's loop and hooks around a model that returns weighted losses.

Step i is a function of the weights after step i - 1, of the seed and of i: its images, their augmentation and all other
random draws are made from (seed, i). A checkpoint therefore holds no random state, only the seed and the iteration,
and a resumed run goes on bit for bit.
"""

from __future__ import annotations

import json
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import TrainerBase, create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tmt_d2.data.datasets.registration import labeled_records
from tmt_d2.data.loaders import MappedRecords, StepSampler
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import DataError
from tmt_d2.engine.anomaly import find_anomalies
from tmt_d2.engine.bad_samples import BadSamples
from tmt_d2.engine.best import BEST, Best
from tmt_d2.engine.checkpoint.checkpointer import FINAL, TMTCheckpointer
from tmt_d2.engine.optimizer import build_lr_scheduler, build_optimizer
from tmt_d2.engine.step import TrainingStep, clipping
from tmt_d2.engine.writers import build_writers
from tmt_d2.errors import USER_ERRORS, UserError
from tmt_d2.evaluation.inference import build_inference
from tmt_d2.evaluation.semantic import SemanticEvaluator, evaluate_split, metrics_table
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.precision import bfloat16_where_faster
from tmt_d2.utils import signals
from tmt_d2.utils.files import atomic_write, write_json
from tmt_d2.utils.randomness import seed_everything

logger = logging.getLogger(__name__)

COARSEST = 32  # stride of a backbone's last map
ONE_VALUE = "Expected more than 1 value per channel"  # PyTorch's batch normalization
STEP_STREAM = 1_000_003  # keeps the draws of steps apart from those of samples


class StageTrainer(TrainerBase):
    """Trains ``training_module``, checkpoints ``model``; they differ in the estimator stage only."""

    def __init__(
        self,
        cfg: CfgNode,
        *,
        model: nn.Module,
        data_loader: DataLoader,
        training_module: nn.Module | None = None,
        evaluate: Callable[[], dict[str, Any]] | None = None,
        require_estimator: bool = False,
        extra_hooks: Sequence[hooks.HookBase] = (),
    ):
        """
        Args:
            model: what is saved and evaluated.
            training_module: batch -> dict of weighted losses; ``model`` itself by default.
            data_loader: of ``data.loaders``; its sampler's seed is that of the whole run.
            evaluate: -> nested results for the logs, every TEST.EVAL_PERIOD iterations and at the end; the metrics of
                DATASETS.TEST by default.
            require_estimator: refuse to start from a checkpoint without trained discriminators.
            extra_hooks: a user's own, called behind the evaluation and before the storage is written.
        """
        super().__init__()
        self.extra_hooks = list(extra_hooks)
        self.sampler = cast(StepSampler, data_loader.batch_sampler)
        records = cast(MappedRecords, data_loader.dataset)
        _check_share(self.sampler, cfg.SOLVER.ACCUMULATION_STEPS)
        module = model if training_module is None else training_module
        # what a module around the model has of its own, counts and running means, was made on the CPU
        module.to(next(model.parameters()).device)
        _check_normalization(cfg, module, self.sampler)
        optimizer = build_optimizer(cfg, module)
        if cfg.SOLVER.DETECT_ANOMALY:
            find_anomalies(module)
        devices = None if cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
        clip = cfg.SOLVER.CLIP_GRADIENTS
        self.step = TrainingStep(
            create_ddp_model(module, broadcast_buffers=False, device_ids=devices),
            optimizer,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            amp_dtype=_amp_dtype(cfg),
            clip=clipping(clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE),
        )
        self.model = model  # where Detectron2's hooks find it
        self.module, self.optimizer, self.data_loader, self.cfg = module, optimizer, data_loader, cfg
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.bad_samples = BadSamples(records.images, cfg.DATALOADER.MAX_BAD_FRACTION)
        self.checkpointer = TMTCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            save_to_disk=comm.is_main_process(),
            require_estimator=require_estimator,
            keep=cfg.SOLVER.CHECKPOINTS_KEPT,
            reinit_class_head=cfg.TRANSFER.REINIT_CLASS_HEAD,
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self._final_is_of = -1
        self.done = self.saved = -1  # the last iteration that was completed, and that a checkpoint has
        self._evaluate = evaluate or (lambda: evaluate_model(cfg, model))
        self.best = Best.from_config(cfg)
        self._results: dict[str, Any] = {}

    def build_hooks(self) -> list[hooks.HookBase]:
        registered: list[hooks.HookBase] = [hooks.IterationTimer(), hooks.LRScheduler(), _Save()]
        registered.append(hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate_and_flatten))
        registered += self.extra_hooks
        if comm.is_main_process():
            writers = build_writers(self.cfg)
            registered.append(hooks.PeriodicWriter(writers, period=20))
        return registered

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the newest usable checkpoint in OUTPUT_DIR, or else begin with the weights of MODEL.WEIGHTS.

        Raises:
            UserError: the checkpoint holds no state of a trainer, or is beyond SOLVER.MAX_ITER.
        """
        resume = resume and self.checkpointer.has_checkpoint()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if not resume:
            if self.best and comm.is_main_process():
                self.best.forget()
            return
        if self.done < 0:
            raise UserError(f"{self.cfg.OUTPUT_DIR}: its checkpoint holds weights only, there is nothing to resume")
        self.start_iter, self.saved = self.done + 1, self.done
        if self.best:
            self.best.read(self.done + 1)
        if self.start_iter > self.max_iter:
            raise UserError(
                f"{self.cfg.OUTPUT_DIR} holds a checkpoint after {self.start_iter} iterations, but SOLVER.MAX_ITER is "
                f"{self.max_iter}: raise it, or choose another OUTPUT_DIR"
            )
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr()):
            group["lr"] = lr  # MAX_ITER may have changed
        if self.start_iter == self.max_iter:
            logger.info("iteration %d of %d: nothing left to train", self.start_iter, self.max_iter)

    def train(self) -> dict[str, Any]:
        """Train to the end and return the final results (evaluated once, by the hook after the last step).

        Raises:
            Stopped: on SIGTERM or SIGUSR1, with a checkpoint of the last step on disk.
            FloatingPointError: a loss or the gradient is not finite; the state before that step is on disk.
            DataError: too many training images cannot be read.
        """
        if not self.start_iter:
            self.checkpointer.supersede()
        if comm.is_main_process():
            _forget_metrics(Path(self.cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)
        self.register_hooks(self.build_hooks())
        self.module.train()
        self.seed, self.sampler.first_step = self.sampler.seed, self.start_iter
        self._batches: Iterator[list[dict[str, Any]]] = iter(())
        if self.start_iter < self.max_iter:
            self._batches = iter(self.data_loader)
        logger.info("training from iteration %d to %d", self.start_iter, self.max_iter)
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                self._make_up_for_an_evaluation()
                for iteration in range(self.start_iter, self.max_iter):
                    if self._is_stopped_early():
                        break
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                if not (self._is_stopped_early() and self._results):  # else the last evaluation is that of the end
                    self.iter = self.max_iter
                self.after_train()
            except signals.Stopped:
                self.save_checkpoint()
                logger.warning(
                    "%s: stopping after %d of %d iterations; they are saved, and a run resumed in %s continues there",
                    signals.reason(),
                    self.done + 1,
                    self.max_iter,
                    self.cfg.OUTPUT_DIR,
                )
                if comm.is_main_process():
                    self._hooks[-1].after_train()  # the writers
                raise
            except USER_ERRORS:
                raise
            except Exception:
                logger.exception("iteration %d failed", self.iter)
                raise
            finally:
                del self._batches  # ends the loader's processes
        self._summarise_bad_samples()
        return self._results

    def _make_up_for_an_evaluation(self) -> None:
        """A run may be stopped between a checkpoint and the evaluation after the same step."""
        period = self.cfg.TEST.EVAL_PERIOD
        due = self.best and period > 0 and 0 < self.start_iter < self.max_iter and self.start_iter % period == 0
        if self.best and due and self.start_iter not in self.best.values:
            self._evaluate_and_flatten()
            self.module.train()

    def _is_stopped_early(self) -> bool:
        """Whether TEST.BEST.PATIENCE has run out; the weights are then final, and are saved as such once."""
        if self.best is None or not self.best.exhausted or self.done + 1 >= self.max_iter:
            return False
        if self._final_is_of != self.done:
            logger.info(
                "stopping after %d of %d iterations: %d evaluations brought nothing better (TEST.BEST.PATIENCE)",
                self.done + 1,
                self.max_iter,
                self.best.patience,
            )
            self._final_is_of = self.done
            self.save_checkpoint(FINAL)
        return True

    def _summarise_bad_samples(self) -> None:
        for reasons in comm.gather(self.bad_samples.reasons):
            self.bad_samples.reasons.update(reasons)
        if self.bad_samples.reasons and comm.is_main_process():
            logger.warning(self.bad_samples.summary())
            write_json(Path(self.cfg.OUTPUT_DIR) / "bad_samples.json", self.bad_samples.reasons)

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
            raise UserError(f"iteration {self.iter}: {_one_value_per_channel(self.cfg)}") from error
        *values, norm_value, stop = self._over_processes([*losses.values(), norm])
        named = dict(zip(losses, values))
        if not math.isfinite(sum(values)) or not (math.isfinite(norm_value) or self.step.may_overflow()):
            self._refuse(batch, losses)
        self.step.update()
        self.done, self.stop_agreed = self.iter, stop > 0
        self.storage.put_scalars(total_loss=sum(values), gradient_norm=norm_value, data_time=waited, **named)

    def _over_processes(self, values: list[Tensor]) -> list[float]:
        """Means of ``values`` and then of "was asked to stop": one transfer, the same numbers in every process."""
        together = torch.stack([*values, torch.full_like(values[0], float(signals.requested()))]).float()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(together)
            together /= comm.get_world_size()
        return together.tolist()

    def _refuse(self, batch: list[dict[str, Any]], losses: dict[str, Tensor]) -> None:
        wrong = [name for name, value in losses.items() if not torch.isfinite(value)]
        if not wrong:
            gradients = ((name, p.grad) for name, p in self.module.named_parameters() if p.grad is not None)
            wrong = [f"the gradient of {name}" for name, value in gradients if not torch.isfinite(value).all()]
        told = comm.all_gather((wrong, _file_names(batch)))
        wrong = list(dict.fromkeys(name for each, _ in told for name in each))
        self.step.take_back()
        name = f"not_finite_{self.iter:07d}"
        self.save_checkpoint(name)
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise FloatingPointError(
            f"iteration {self.iter}: {wrong[0] if wrong else 'the loss'}{more} is not finite; images: "
            f"{', '.join(files for _, files in told)}; the state before this step is in "
            f"{self.cfg.OUTPUT_DIR}/{name}.pth; --detect-anomaly finds the module"
        )

    def save_checkpoint(self, name: str | None = None) -> None:
        """Save the state after the last completed step, in all processes together; by default where it is not saved."""
        if name is None:
            if self.saved == self.done:
                return
            name = FINAL if self.done + 1 == self.max_iter else f"model_{self.done:07d}"
            self.saved = self.done
        self._share_buffers()
        self.checkpointer.save(name)
        comm.synchronize()  # a process that left before the file is whole would take the others with it

    def _share_buffers(self) -> None:
        """Normalisation statistics are gathered by each process alone; those of the first one count."""
        if comm.get_world_size() > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _evaluate_and_flatten(self) -> dict[str, Any]:
        self._share_buffers()
        try:
            self._results = self._evaluate()
        except DataError:
            if comm.get_world_size() == 1:  # other processes may have read their images
                self.save_checkpoint()
            raise
        if self.best:
            save = partial(self.checkpointer.save_weights, BEST, iterations=self.done + 1)
            self.best.note(self.done + 1, self._results, save)
            comm.synchronize()
        return _nested_scalars(self._results)

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
        self.bad_samples.reasons.update(state["bad_samples"])
        self.step.load_state_dict(state)


def _file_names(batch: list[dict[str, Any]]) -> str:
    return ", ".join(record.get("file_name", "?") for record in batch)


class _Save(hooks.HookBase):
    """Saves every SOLVER.CHECKPOINT_PERIOD steps and after the last one, and is where a run stops when asked to."""

    def after_step(self) -> None:
        trainer = self.trainer
        period = trainer.cfg.SOLVER.CHECKPOINT_PERIOD
        after = trainer.done + 1
        if after == trainer.max_iter or (period > 0 and after % period == 0):
            trainer.save_checkpoint()
        if trainer.stop_agreed:
            raise signals.Stopped


def _amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE == "bfloat16":
        return bfloat16_where_faster(cfg.MODEL.DEVICE, "SOLVER.AMP.DTYPE")
    if cfg.MODEL.DEVICE == "cpu":
        logger.info("SOLVER.AMP.DTYPE float16 is for GPUs: training in float32; bfloat16 works on some CPUs, too")
        return None
    return torch.float16


def _check_share(sampler: StepSampler, accumulation_steps: int) -> None:
    shares = [share // sampler.processes for share in sampler.shares if share]
    if any(share % accumulation_steps for share in shares):
        own = " + ".join(map(str, shares)) + (" images of its groups" if len(shares) > 1 else " image(s)")
        raise UserError(f"SOLVER.ACCUMULATION_STEPS {accumulation_steps} does not divide a process's {own}")


def _check_normalization(cfg: CfgNode, module: nn.Module, sampler: StepSampler) -> None:
    """Batch normalization needs more than one value per channel, in the coarsest map too."""
    images = sum(sampler.shares) // sampler.processes // cfg.SOLVER.ACCUMULATION_STEPS
    one_position = cfg.INPUT.CROP.ENABLED and max(cfg.INPUT.CROP.SIZE) <= COARSEST
    learns = isinstance(module, MaskFormer) and any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training
        for part in module.train().backbone.modules()
    )
    if images == 1 and one_position and learns:
        raise UserError(_one_value_per_channel(cfg))


def _one_value_per_channel(cfg: CfgNode) -> str:
    return (
        f"INPUT.CROP.SIZE is {tuple(cfg.INPUT.CROP.SIZE)} and a forward pass has one image: batch normalization of the "
        f"coarsest map, at 1/{COARSEST}, needs more than one value; take larger crops or more SOLVER.IMS_PER_BATCH"
    )


def _forget_metrics(path: Path, start: int) -> None:
    """Drop the lines of iterations that are about to be repeated, and one that a kill cut short."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("}\n") and _is_before(line, start)]
    if len(kept) < len(lines):
        with atomic_write(path, "w") as file:
            file.writelines(kept)


def _is_before(line: str, start: int) -> bool:
    try:
        return json.loads(line)["iteration"] < start
    except (ValueError, KeyError):
        return False


def _nested_scalars(value: Any) -> Any:
    """Lists as dictionaries by position: what Detectron2's event storage can log."""
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    return {key: _nested_scalars(item) for key, item in value.items()} if isinstance(value, dict) else value


def evaluate_model(
    cfg: CfgNode, model: nn.Module, folder: str = "inference", which: str = ""
) -> dict[str, dict[str, float]]:
    """Metrics of every split of DATASETS.TEST: {split: {"mIoU", "fwIoU", "mACC", "pACC", "IoU-road", ...}}.

    folder: in OUTPUT_DIR, for what else the evaluator writes. which: name of the model in the log.
    """
    results = {}
    for name in cfg.DATASETS.TEST:
        loader = build_detection_test_loader(
            labeled_records([name]),
            mapper=SemanticMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        evaluator = SemanticEvaluator(name, f"{cfg.OUTPUT_DIR}/{folder}/{name}")
        scores = evaluate_split(build_inference(cfg, model), signals.Stoppable(loader), evaluator)
        results[name] = scores.get("sem_seg", {})
        if results[name]:
            logger.info(
                "%s%s, in percent:\n%s",
                name,
                which and f" by the {which}",
                metrics_table(results[name], evaluator.classes),
            )
    return results
