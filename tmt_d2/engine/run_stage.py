"""The three stages: source training, estimator training, fine-tuning; one run of ``train_net.py`` is one stage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from tmt_d2.adaptation.alignment import AlignmentTraining, build_alignment_loader, pixels_of_a_call
from tmt_d2.adaptation.drift import DRIFT, build_drift
from tmt_d2.adaptation.estimator import DiscriminatorTraining, held_out_loader, measure
from tmt_d2.adaptation.map_cache import prepare_maps, reads_maps
from tmt_d2.adaptation.methods import Method, method_of
from tmt_d2.config import NUM_CLASSES_UNSET, with_num_classes
from tmt_d2.config.checks import check_cfg
from tmt_d2.data import register_data
from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.registration import (
    check_has_classes,
    check_readable,
    check_registered,
    common_classes,
    label_space_of,
    labeled_records,
    records_of,
)
from tmt_d2.data.labeled import LabelChoice
from tmt_d2.data.loaders import Shares, build_paired_loader, build_semi_supervised_loader, build_train_loader
from tmt_d2.data.mapper import SemanticMapper, resized_size
from tmt_d2.data.rare_classes import RareClasses
from tmt_d2.data.reader import DataError, stored_size
from tmt_d2.engine.checkpoint.checkpointer import (
    ESTIMATOR,
    ESTIMATOR_TRAINING,
    FINAL,
    METHOD_TRAINING,
    TMTCheckpointer,
    refuse_another_estimator,
)
from tmt_d2.engine.environment import environment
from tmt_d2.engine.loading import log_input_size, on_this_machine
from tmt_d2.engine.run_dir import RESULTS, RunDir, SaveConfig
from tmt_d2.engine.trainer import StageTrainer, evaluate_model
from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import METRICS, metric_names
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils.files import remove_temporaries, write_json
from tmt_d2.utils.lock import folder_lock
from tmt_d2.utils.logs import log_file
from tmt_d2.utils.signals import Stoppable, stop_on_signals

logger = logging.getLogger(__name__)

MAX_SHRINKING = 4  # of an edge, without a warning
ESTIMATED = "TransferableMaskFormer"  # the architecture that has discriminators


def run_stage(
    cfg: CfgNode, resume: bool = False, eval_only: bool = False, hooks: Sequence[HookBase] = ()
) -> dict[str, Any]:
    """Run the stage that ``cfg`` describes and write its results to OUTPUT_DIR.

    Args:
        hooks: Detectron2's, of your own, for source training and fine-tuning; in every process of the run.

    Returns:
        source and fine-tuning: {split: metrics}; estimator: as ``measure``. The same is in ``RESULTS[stage]``.

    Raises:
        UserError, FileNotFoundError: before training starts, if the configuration, the data or the checkpoint cannot
            be used; one line that names what is wrong.
    """
    check_cfg(cfg)
    cfg = on_this_machine(cfg)
    register_data(cfg)
    classes = check_stage(cfg, eval_only)
    _check_files(cfg, eval_only)
    cfg = with_num_classes(cfg, len(classes))
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS {weights} does not exist")
    run_dir = RunDir(cfg)
    folder = run_dir.folder
    eval_only = eval_only or (resume and run_dir.has_ended())
    with folder_lock(folder), log_file(folder), stop_on_signals():
        if comm.is_main_process():
            remove_temporaries(folder)
            for line in environment():
                logger.info(line)
            log_input_size(cfg, trains=not eval_only)
            if not eval_only:
                _warn_of_small_inputs(cfg)
        run_dir.check(resume, eval_only)
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
        model = build_model(cfg)
        model.classes = classes
        logger.info("predicting %s", classes)
        save_config = SaveConfig(cfg)
        if cfg.TRANSFER.STAGE == "estimator":
            results = _run_estimator(cfg, model, resume, eval_only, [save_config])
        else:
            results = _run_training(cfg, model, resume, eval_only, [save_config, *hooks])
        if eval_only:
            save_config.after_evaluation()
        drift = results.pop(DRIFT, None)
        if comm.is_main_process():
            if drift is not None:
                write_json(folder / f"{DRIFT}.json", drift)
            path = folder / RESULTS[cfg.TRANSFER.STAGE]
            write_json(path, results)
            logger.info("results: %s", path)
    return results


def check_stage(cfg: CfgNode, eval_only: bool = False) -> ClassList:
    """Raise one-line errors for what would otherwise fail, or mislead, long after the start.

    Returns:
        the one class list of all splits with labels that count, which the model will have; the estimator's are those of
        the source model, so of the source.
    """
    stage, method = cfg.TRANSFER.STAGE, method_of(cfg)
    architecture = {"source": None, "estimator": ESTIMATED, "finetune": method.architecture}[stage]
    if architecture not in (None, cfg.MODEL.META_ARCHITECTURE):
        what = f"TRANSFER.METHOD {method.name}" if stage == "finetune" else f"TRANSFER.STAGE {stage}"
        raise UserError(f"{what} needs MODEL.META_ARCHITECTURE {architecture}, got {cfg.MODEL.META_ARCHITECTURE}")
    if not cfg.MODEL.WEIGHTS and (stage != "source" or eval_only):
        what = "evaluation" if eval_only else f"stage {stage}"
        raise UserError(
            f"MODEL.WEIGHTS is empty: {what} starts from a checkpoint, e.g. the source stage's model_final.pth"
        )
    keys = ["TEST"] if eval_only else ["TRAIN", "TEST"]
    if stage == "finetune" and not eval_only:
        mixed = Shares.from_config(cfg) if method.mixes_groups else Shares(cfg.SOLVER.IMS_PER_BATCH)
        keys += ["SOURCE_TRAIN"] if method.reads_source or mixed.source else []
        keys += ["UNLABELED"] if method.mixes_groups and cfg.DATASETS.UNLABELED else []
    if stage == "estimator":
        keys += ["SOURCE_TEST"] if eval_only else ["SOURCE_TRAIN", "SOURCE_TEST"]
    says_classes = {"SOURCE_TRAIN", "SOURCE_TEST"} if stage == "estimator" else {"TRAIN", "TEST", "SOURCE_TRAIN"}
    needs_labels = set() if stage == "estimator" else says_classes
    if stage == "finetune" and method.mixes_groups:
        needs_labels = needs_labels - {"TRAIN"}  # its loader finds those that have one
    seen = {*cfg.DATASETS.SOURCE_TRAIN, *cfg.DATASETS.TRAIN} if stage == "estimator" else set()
    for key in keys:
        names = cfg.DATASETS[key]
        if not names:
            raise UserError(f"DATASETS.{key} is empty: name at least one registered split")
        for name in names:
            check_registered(name, f"DATASETS.{key}")
            if key.endswith("TEST") and name in seen:
                raise UserError(
                    f"DATASETS.{key} names {name!r}, on which the discriminators are trained: the proxy A-distance is "
                    "measured on images that they have not seen, name a held-out split"
                )
            # A missing root or file speaks up now, not at the first evaluation.
            try:
                _ = labeled_records([name]) if key in needs_labels else DatasetCatalog.get(name)
            except FileNotFoundError as error:
                if key != "SOURCE_TRAIN" or not method.mixes_groups:
                    raise
                remedy = "or do without the source's pictures: SELF_TRAINING.SOURCE_RATIO 0.0"
                raise UserError(f"DATASETS.{key} {name}: {error}; {remedy}") from error
    both = {*cfg.DATASETS.SOURCE_TRAIN} & {*cfg.DATASETS.TRAIN}
    if both and "SOURCE_TRAIN" in keys:
        logger.warning(
            "DATASETS.SOURCE_TRAIN and DATASETS.TRAIN both name %s: source and target are one domain, T says nothing",
            ", ".join(sorted(both)),
        )
    if stage != "estimator" and not eval_only:
        _check_best(cfg)
    used = [name for key in keys if key in says_classes for name in cfg.DATASETS[key]]
    if stage == "finetune" and not eval_only:
        choice = LabelChoice.from_config(cfg)
        if mixed.labeled:
            choice.of(records_of(cfg.DATASETS.TRAIN))
        elif choice.is_limited:
            logger.warning("SELF_TRAINING.LABELED_RATIO is 0: no label of the target is used, however many it has")
        if mixed.source:
            _check_source(cfg)
        tested = {*cfg.DATASETS.UNLABELED} & {*cfg.DATASETS.TEST} if mixed.unlabeled else ()
        if tested:
            names = ", ".join(sorted(tested))
            logger.warning("DATASETS.UNLABELED and TEST both name %s: it is trained on, unseen it is not", names)
    classes, configured = common_classes(used), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if configured not in (len(classes), *NUM_CLASSES_UNSET):
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {configured}, {used[0]} has {classes}: set it to {len(classes)}, or "
            "leave it out, as it follows from the data sets"
        )
    return classes


def _check_files(cfg: CfgNode, eval_only: bool) -> None:
    """
    Raises:
        DataError: an image that is measured on has no header, which an evaluation would find after hours; or there is
            no pixel to learn from.
    """
    fine_tunes, measures_labels = cfg.TRANSFER.STAGE == "finetune", cfg.TRANSFER.STAGE != "estimator"
    tested = labeled_records(cfg.DATASETS.TEST) if measures_labels else records_of(cfg.DATASETS.TEST)
    check_readable(tested)
    if not measures_labels:
        check_readable(records_of(cfg.DATASETS.SOURCE_TEST))
        return
    try:
        check_has_classes("DATASETS.TEST", tested)
    except DataError as error:
        logger.warning("%s; there is nothing to measure on", error)
    if eval_only:
        return
    learns = not (fine_tunes and method_of(cfg).mixes_groups)
    if learns or Shares.from_config(cfg).labeled:
        names = cfg.DATASETS.TRAIN
        chosen = LabelChoice.from_config(cfg).of(records_of(names)) if fine_tunes else labeled_records(names)
        check_has_classes("DATASETS.TRAIN", chosen)
    if not learns and Shares.from_config(cfg).source:
        check_has_classes("DATASETS.SOURCE_TRAIN", labeled_records(cfg.DATASETS.SOURCE_TRAIN))


def _check_source(cfg: CfgNode) -> None:
    """Of the target's classes the source has some; which it lacks, only the target's labels can teach."""
    target, source = (
        set().union(*({*space.train_ids.values()} - {*space.never_occurs} for space in map(label_space_of, names)))
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.SOURCE_TRAIN)
    )
    names = label_space_of(cfg.DATASETS.TRAIN[0]).classes.names
    lacking = ", ".join(names[index] for index in sorted(target - source))
    if not target & source:
        raise UserError(
            f"DATASETS.SOURCE_TRAIN {', '.join(cfg.DATASETS.SOURCE_TRAIN)} has none of the target's classes "
            f"({lacking}): name another source, or set SELF_TRAINING.SOURCE_RATIO 0.0"
        )
    if lacking:
        logger.warning("the source has no %s: only labels of the target can teach them", lacking)


def _warn_of_small_inputs(cfg: CfgNode) -> None:
    """Warn once where some of the training images lose more than three quarters of each edge."""
    records = records_of(cfg.DATASETS.TRAIN)
    for record in records[:: -(-len(records) // 16)]:
        file, sizes = Path(record["file_name"]), cfg.INPUT
        size = stored_size(file.read_bytes()) if file.is_file() else None
        for keys, least, most in (
            ("INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST", sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST),
            ("INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN", max(sizes.MIN_SIZE_TRAIN), sizes.MAX_SIZE_TRAIN),
        ):
            resized = resized_size(size, least, most) if size else None
            if size and resized and min(size) > MAX_SHRINKING * min(resized):
                logger.warning(
                    "%s shrink images such as %s from %d x %d to %d x %d pixels: choose larger ones, see docs/data.md",
                    *(keys, file, *size, *resized),
                )
                return


def _check_best(cfg: CfgNode) -> None:
    best = cfg.TEST.BEST
    if not best.METRIC:
        if best.PATIENCE:
            raise UserError(
                f"TEST.BEST.PATIENCE is {best.PATIENCE}: name the metric that counts, TEST.BEST.METRIC mIoU"
            )
        return
    if cfg.TEST.EVAL_PERIOD <= 0:
        raise UserError("TEST.BEST.METRIC needs evaluations to choose from: set TEST.EVAL_PERIOD, in iterations")
    if best.SPLIT and best.SPLIT not in cfg.DATASETS.TEST:
        raise UserError(
            f"TEST.BEST.SPLIT is {best.SPLIT!r}: choose one of DATASETS.TEST, {', '.join(cfg.DATASETS.TEST)}"
        )
    known = metric_names(best.SPLIT or cfg.DATASETS.TEST[0])
    if best.METRIC not in known:
        raise UserError(f"TEST.BEST.METRIC is {best.METRIC!r}: choose one of {', '.join(known)}")


def apply_method(model: nn.Module, method: Method) -> None:
    """Freeze what the method does not train. The estimator is frozen in every method."""
    for name, parameter in model.named_parameters():
        if name.startswith(ESTIMATOR) or not name.startswith(method.trains or ""):
            parameter.requires_grad_(False)


def _run_training(
    cfg: CfgNode, model: nn.Module, resume: bool, eval_only: bool, hooks: Sequence[HookBase]
) -> dict[str, Any]:
    require_estimator = isinstance(model, TransferableMaskFormer)
    if eval_only:
        checkpointer = TMTCheckpointer(model, cfg.OUTPUT_DIR, require_estimator=require_estimator, require_head=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        return evaluate_model(cfg, model)
    fine_tunes = cfg.TRANSFER.STAGE == "finetune"
    maps = drift = training = None
    if fine_tunes:
        method = method_of(cfg)
        apply_method(model, method)
        started = resume and TMTCheckpointer(model, cfg.OUTPUT_DIR).has_checkpoint()
        if method.raises and cfg.TRANSFER.ALIGNMENT.ITERATIONS and not started:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.WEIGHTS = _align(cfg, model, method.raises, resume)
            cfg.freeze()
        if started and reads_maps(model, cfg):
            refuse_another_estimator(cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR)
        maps = prepare_maps(cfg, model, load_source_model)
        drift = build_drift(cfg, model)
        training = method.training(cfg, model) if method.training else None
    mapper = SemanticMapper(cfg, is_train=True, maps=maps)
    labels = LabelChoice.from_config(cfg) if fine_tunes else None
    choices: dict[str, Any] = {"labels": labels, "seed": _seed(cfg), "num_workers": cfg.DATALOADER.NUM_WORKERS}
    if fine_tunes and method.mixes_groups:
        data = cfg.DATASETS
        splits = {"target": data.TRAIN, "unlabeled": data.UNLABELED, "source": data.SOURCE_TRAIN}
        choices |= {"mapper": mapper, "rare": RareClasses.from_config(cfg)}
        loader = build_semi_supervised_loader(Shares.from_config(cfg), **splits, **choices)
    else:
        loader = build_train_loader(cfg.DATASETS.TRAIN, mapper, cfg.SOLVER.IMS_PER_BATCH, **choices)

    def evaluate() -> dict[str, Any]:
        others = {} if training is None else training.also_evaluated()
        scores = evaluate_model(cfg, model, which="teacher") if others else evaluate_model(cfg, model)
        for name, other in others.items():
            for split, metrics in evaluate_model(cfg, other, f"inference/{name}", name).items():
                scores[split] |= {f"{metric}-{name}": metrics[metric] for metric in METRICS if metric in metrics}
        return scores if drift is None else scores | {DRIFT: drift.measure()}

    trainer = StageTrainer(
        cfg,
        model=model,
        training_module=training,
        data_loader=loader,
        evaluate=evaluate,
        require_estimator=require_estimator,
        extra_hooks=hooks,
    )
    if training is not None:
        training.load_references(lambda path, other: TMTCheckpointer(other, backbone_only=True).load(path, []))
        trainer.checkpointer.add_checkpointable(METHOD_TRAINING, training.progress)
    trainer.resume_or_load(resume)
    if fine_tunes and not trainer.start_iter and not trainer.checkpointer.found_head:
        logger.warning(
            "MODEL.WEIGHTS %s holds no segmentation head: fine-tuning begins with a random one, not a source model's",
            cfg.MODEL.WEIGHTS,
        )
    if training is not None and not trainer.start_iter:
        training.begin()
    if drift is not None:
        drift.begin(trainer.start_iter)
    return trainer.train()


def load_source_model(cfg: CfgNode, model: nn.Module) -> None:
    reinit = cfg.TRANSFER.REINIT_CLASS_HEAD
    checkpointer = TMTCheckpointer(model, require_estimator=True, require_head=True, reinit_class_head=reinit)
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])


def _align(cfg: CfgNode, model: nn.Module, score: str, resume: bool) -> str:
    """Raise the score of the source model, in OUTPUT_DIR/alignment; return the checkpoint to fine-tune from.

    model: the one to fine-tune, which stays as it is.
    """
    alignment = cfg.TRANSFER.ALIGNMENT
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "alignment")
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.TEST.EVAL_PERIOD = alignment.ITERATIONS, alignment.BASE_LR, 0
    cfg.TEST.BEST.METRIC = ""
    cfg.freeze()
    aligned = build_model(cfg)  # of its own: what it freezes is learned again by fine-tuning
    aligned.classes = model.classes
    training = AlignmentTraining(
        aligned,
        score,
        weight=alignment.WEIGHT,
        pixels=pixels_of_a_call(cfg),
        epsilon=alignment.EPSILON,
        sinkhorn_iterations=alignment.SINKHORN_ITERATIONS,
        differentiate_plan=alignment.DIFFERENTIATE_PLAN,
    )
    loader = build_alignment_loader(cfg, _seed(cfg))
    with log_file(cfg.OUTPUT_DIR):
        trainer = StageTrainer(cfg, model=aligned, training_module=training, data_loader=loader, evaluate=dict)
        trainer.checkpointer.require_head = True  # its predictions are what is aligned
        trainer.resume_or_load(resume)
        trainer.train()
    return f"{cfg.OUTPUT_DIR}/{FINAL}.pth"


def _run_estimator(
    cfg: CfgNode, model: TransferableMaskFormer, resume: bool, eval_only: bool, hooks: Sequence[HookBase]
) -> dict[str, Any]:
    training = DiscriminatorTraining(model, cfg.TRANSFER.ESTIMATOR.TARGET_ERROR)
    held_out = {
        domain: Stoppable(held_out_loader(cfg, names, cfg.TRANSFER.ESTIMATOR.HELD_OUT))
        for domain, names in (("source", cfg.DATASETS.SOURCE_TEST), ("target", cfg.DATASETS.TEST))
    }
    if eval_only:
        checkpointer = TMTCheckpointer(model, cfg.OUTPUT_DIR, require_estimator=True, require_head=True)
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
        cfg,
        model=model,
        training_module=training,
        data_loader=loader,
        evaluate=lambda: measure(training, held_out),
        extra_hooks=hooks,
    )
    trainer.checkpointer.add_checkpointable(ESTIMATOR_TRAINING, training.progress)
    trainer.checkpointer.require_head = True  # E learns on the features of a trained pixel decoder
    trainer.resume_or_load(resume)
    return trainer.train()


def _seed(cfg: CfgNode) -> int | None:
    return cfg.SEED if cfg.SEED >= 0 else None
