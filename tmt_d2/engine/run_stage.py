"""One run of ``train_net.py``: find the task, check, train or evaluate, write the results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from tmt_d2.adaptation import task_of
from tmt_d2.adaptation.checks import check_files, check_task, classes_of_run, warn_of_small_inputs
from tmt_d2.config import check_cfg, replace_keys
from tmt_d2.data import register_data
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.engine.environment import environment
from tmt_d2.engine.loading import log_input_size, on_this_machine
from tmt_d2.engine.run_dir import RunDir, SaveConfig
from tmt_d2.engine.trainer import Trainer
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils.files import remove_temporaries, write_json
from tmt_d2.utils.lock import folder_lock
from tmt_d2.utils.logs import log_file
from tmt_d2.utils.signals import stop_on_signals

logger = logging.getLogger(__name__)


def run_stage(
    cfg: CfgNode,
    resume: bool = False,
    eval_only: bool = False,
    hooks: Sequence[HookBase] = (),
    trainer: type[Trainer] = Trainer,
) -> dict[str, Any]:
    """Run the task that TRANSFER.METHOD names.

    Args:
        resume: from the newest usable checkpoint in OUTPUT_DIR.
        eval_only: evaluate MODEL.WEIGHTS, or with ``resume`` the newest checkpoint.
        hooks: Detectron2's, of your own; in every process of the run.
        trainer: a subclass with parts of your own.

    Returns:
        the results of the task, such as {split: metrics}; also written to OUTPUT_DIR.

    Raises:
        UserError, FileNotFoundError: before training starts, if the configuration, the data or the checkpoint cannot
            be used.
    """
    check_cfg(cfg)
    cfg = on_this_machine(cfg)
    register_data(cfg)
    classes = check_task(cfg, eval_only)
    check_files(cfg, eval_only)
    cfg = replace_keys(cfg, {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(classes)})
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
                warn_of_small_inputs(cfg)
        run_dir.check(resume, eval_only)
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
        logger.info("predicting %s", classes)
        save_config = SaveConfig(cfg)
        if eval_only:
            results = _evaluate(cfg, resume, trainer)
            save_config.after_evaluation()
        else:
            run = trainer(cfg, [save_config, *hooks])
            run.resume_or_load(resume)
            results = run.train()
        if comm.is_main_process():
            path = folder / task_of(cfg).results
            write_json(path, results)
            logger.info("results: %s", path)
    return results


def _evaluate(cfg: CfgNode, resume: bool, trainer: type[Trainer]) -> dict[str, Any]:
    model: Any = trainer.build_model(cfg)
    model.classes = classes_of_run(cfg, eval_only=True)
    has_estimator = isinstance(model, TransferableMaskFormer)
    checkpointer = TMTCheckpointer(model, cfg.OUTPUT_DIR, require_estimator=has_estimator, require_head=True)
    checkpoint = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return task_of(cfg).evaluate_checkpoint(cfg, model, checkpoint, partial(trainer.test, cfg))
