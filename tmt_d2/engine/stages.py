"""The three stages: source training, estimator training, fine-tuning; one run of ``train_net.py`` is one stage."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from ..config import check_cfg
from ..data import register_custom
from ..data.loaders import build_paired_loader, build_train_loader
from ..data.mapper import SemanticMapper
from ..files import atomic_write, remove_temporaries, write_json
from ..modeling.mask_former import TransferableMaskFormer
from .alignment import ALIGNED, AlignmentTraining, build_alignment_loader, pixels_of_a_call
from .checkpoint import ESTIMATOR_TRAINING, FINAL, TMTCheckpointer, ended_after
from .cli import log_file
from .drift import DRIFT, build_drift
from .estimator import DiscriminatorTraining, held_out_loader, measure
from .signals import Stoppable, stop_on_signals
from .trainer import StageTrainer, evaluate_model
from .transferability_maps import prepare_maps

logger = logging.getLogger(__name__)

RESULTS = {"source": "evaluation.json", "estimator": "estimator.json", "finetune": "evaluation.json"}
PREDICTION_LAYERS = ("sem_seg_head.predictor.class_embed.", "sem_seg_head.predictor.mask_embed.")


def run_stage(cfg: CfgNode, resume: bool = False, eval_only: bool = False) -> dict[str, Any]:
    """Run the stage that ``cfg`` describes and write its results to OUTPUT_DIR.

    Returns:
        source and fine-tuning: {split: metrics}; estimator: as ``measure``. The same is in ``RESULTS[stage]``.

    Raises:
        ValueError, FileNotFoundError: before training starts, if the configuration, the data or the checkpoint cannot
            be used; one line that names what is wrong.
    """
    check_cfg(cfg)
    for path in cfg.DATASETS.CUSTOM:
        register_custom(path)
    check_stage(cfg, eval_only)
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS {weights} does not exist")
    folder = Path(cfg.OUTPUT_DIR)
    eval_only = eval_only or (resume and _has_ended(cfg))
    with log_file(folder), stop_on_signals():
        if comm.is_main_process():
            remove_temporaries(folder)
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
        if comm.is_main_process():
            with atomic_write(folder / "config.yaml", "w") as file:
                file.write(cfg.dump())
        model = build_model(cfg)
        run = _run_estimator if cfg.TRANSFER.STAGE == "estimator" else _run_training
        results = run(cfg, model, resume, eval_only)
        drift = results.pop(DRIFT, None)
        if comm.is_main_process():
            if drift is not None:
                write_json(folder / f"{DRIFT}.json", drift)
            write_json(folder / RESULTS[cfg.TRANSFER.STAGE], results)
    return results


def _has_ended(cfg: CfgNode) -> bool:
    """Whether OUTPUT_DIR holds this stage's weights and nothing to train on from: then only results may be missing."""
    iterations = ended_after(cfg.OUTPUT_DIR)
    if iterations not in (None, cfg.SOLVER.MAX_ITER):
        raise ValueError(
            f"{cfg.OUTPUT_DIR} holds only the weights of a run that ended after {iterations} iterations, SOLVER.MAX_ITER "
            f"is {cfg.SOLVER.MAX_ITER}: it cannot go on; choose another OUTPUT_DIR, with MODEL.WEIGHTS "
            f"{cfg.OUTPUT_DIR}/{FINAL}.pth to begin from these weights"
        )
    return iterations is not None


def check_stage(cfg: CfgNode, eval_only: bool = False) -> None:
    """Raise one-line errors for what would otherwise fail, or mislead, long after the start."""
    stage, method = cfg.TRANSFER.STAGE, cfg.TRANSFER.METHOD
    transferable = cfg.MODEL.META_ARCHITECTURE == "TransferableMaskFormer"
    if stage == "estimator" and not transferable:
        raise ValueError("TRANSFER.STAGE estimator needs MODEL.META_ARCHITECTURE TransferableMaskFormer")
    if stage == "finetune" and transferable != (method == "tmt"):
        wanted = "TransferableMaskFormer" if method == "tmt" else "MaskFormer"
        raise ValueError(
            f"TRANSFER.METHOD {method} needs MODEL.META_ARCHITECTURE {wanted}, got {cfg.MODEL.META_ARCHITECTURE}"
        )
    if not cfg.MODEL.WEIGHTS and (stage != "source" or eval_only):
        what = "evaluation" if eval_only else f"stage {stage}"
        raise ValueError(
            f"MODEL.WEIGHTS is empty: {what} starts from a checkpoint, e.g. the source stage's model_final.pth"
        )
    keys = ["TEST"] if eval_only else ["TRAIN", "TEST"]
    if stage == "finetune" and method == "otce" and not eval_only:
        keys += ["SOURCE_TRAIN"]
    if stage == "estimator":
        keys += ["SOURCE_TEST"] if eval_only else ["SOURCE_TRAIN", "SOURCE_TEST"]
    seen = {*cfg.DATASETS.SOURCE_TRAIN, *cfg.DATASETS.TRAIN} if stage == "estimator" else set()
    for key in keys:
        names = cfg.DATASETS[key]
        if not names:
            raise ValueError(f"DATASETS.{key} is empty: name at least one registered split")
        for name in names:
            if name not in DatasetCatalog.list():
                raise ValueError(
                    f"DATASETS.{key} names {name!r}, which is not registered: check the spelling or DATASETS.CUSTOM"
                )
            if key.endswith("TEST") and name in seen:
                raise ValueError(
                    f"DATASETS.{key} names {name!r}, on which the discriminators are trained: the proxy A-distance is "
                    "measured on images that they have not seen, name a held-out split"
                )
            DatasetCatalog.get(name)  # a missing root or file speaks up now, not at the first evaluation


def apply_method(model: nn.Module, method: str) -> None:
    """Freeze what the fine-tuning method does not train. The estimator is frozen in every method."""
    if isinstance(model, TransferableMaskFormer):
        model.transferability.requires_grad_(False)
    if method == "linear":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(PREDICTION_LAYERS))


def _run_training(cfg: CfgNode, model: nn.Module, resume: bool, eval_only: bool) -> dict[str, Any]:
    require_estimator = isinstance(model, TransferableMaskFormer)
    if eval_only:
        TMTCheckpointer(model, cfg.OUTPUT_DIR, require_estimator=require_estimator).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=resume
        )
        return evaluate_model(cfg, model)
    if cfg.TRANSFER.STAGE == "finetune":
        apply_method(model, cfg.TRANSFER.METHOD)
        started = resume and TMTCheckpointer(model, cfg.OUTPUT_DIR).has_checkpoint()
        if cfg.TRANSFER.METHOD in ALIGNED and cfg.TRANSFER.ALIGNMENT.ITERATIONS and not started:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.WEIGHTS = _align(cfg, resume)
            cfg.freeze()
    fine_tunes = cfg.TRANSFER.STAGE == "finetune"
    maps = prepare_maps(cfg, model) if fine_tunes else None
    loader = build_train_loader(
        cfg.DATASETS.TRAIN,
        SemanticMapper(cfg, is_train=True, maps=maps),
        cfg.SOLVER.IMS_PER_BATCH,
        label_fraction=cfg.TRANSFER.LABEL_FRACTION if fine_tunes else 1.0,
        subset_seed=cfg.TRANSFER.LABEL_SEED,
        seed=_seed(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    drift = build_drift(cfg, model) if fine_tunes else None

    def evaluate() -> dict[str, Any]:
        scores = evaluate_model(cfg, model)
        return scores if drift is None else scores | {DRIFT: drift.measure()}

    trainer = StageTrainer(cfg, model=model, data_loader=loader, evaluate=evaluate, require_estimator=require_estimator)
    trainer.resume_or_load(resume)
    if drift is not None:
        drift.begin(trainer.start_iter)
    return trainer.train()


def _align(cfg: CfgNode, resume: bool) -> str:
    """Raise the score of the source model, in OUTPUT_DIR/alignment; return the checkpoint to fine-tune from."""
    alignment = cfg.TRANSFER.ALIGNMENT
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "alignment")
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.TEST.EVAL_PERIOD = alignment.ITERATIONS, alignment.BASE_LR, 0
    cfg.freeze()
    model = build_model(cfg)  # of its own: what it freezes is learned again by fine-tuning
    training = AlignmentTraining(
        model,
        cfg.TRANSFER.METHOD,
        weight=alignment.WEIGHT,
        pixels=pixels_of_a_call(cfg),
        epsilon=alignment.EPSILON,
        sinkhorn_iterations=alignment.SINKHORN_ITERATIONS,
        differentiate_plan=alignment.DIFFERENTIATE_PLAN,
    )
    loader = build_alignment_loader(cfg, _seed(cfg))
    with log_file(cfg.OUTPUT_DIR):
        trainer = StageTrainer(cfg, model=model, training_module=training, data_loader=loader, evaluate=dict)
        trainer.resume_or_load(resume)
        trainer.train()
    return f"{cfg.OUTPUT_DIR}/{FINAL}.pth"


def _run_estimator(cfg: CfgNode, model: TransferableMaskFormer, resume: bool, eval_only: bool) -> dict[str, Any]:
    training = DiscriminatorTraining(model, cfg.TRANSFER.ESTIMATOR.TARGET_ERROR)
    held_out = {
        domain: Stoppable(held_out_loader(cfg, names, cfg.TRANSFER.ESTIMATOR.HELD_OUT))
        for domain, names in (("source", cfg.DATASETS.SOURCE_TEST), ("target", cfg.DATASETS.TEST))
    }
    if eval_only:
        checkpointer = TMTCheckpointer(model, cfg.OUTPUT_DIR, require_estimator=True)
        progress = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume).get(ESTIMATOR_TRAINING)
        if progress is None:
            logger.warning("%s holds one set of discriminators: rank stability, of two, is unknown", cfg.MODEL.WEIGHTS)
        else:
            training.progress.load_state_dict(progress)
        return measure(training, held_out, has_twin=progress is not None)
    loader = build_paired_loader(
        cfg.DATASETS.SOURCE_TRAIN,
        cfg.DATASETS.TRAIN,
        SemanticMapper(cfg, is_train=True, with_label=False),
        cfg.SOLVER.IMS_PER_BATCH,
        seed=_seed(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    trainer = StageTrainer(
        cfg, model=model, training_module=training, data_loader=loader, evaluate=lambda: measure(training, held_out)
    )
    trainer.checkpointer.add_checkpointable(ESTIMATOR_TRAINING, training.progress)
    trainer.resume_or_load(resume)
    return trainer.train()


def _seed(cfg: CfgNode) -> int | None:
    return cfg.SEED if cfg.SEED >= 0 else None
