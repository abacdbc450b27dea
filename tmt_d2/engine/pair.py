"""A whole pair: the stages of one (source, target) that are still missing, then a table and ``results.json``."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate

from ..config import METHODS, setup_cfg
from ..files import write_json
from .stages import RESULTS, check_stage, run_stage

logger = logging.getLogger(__name__)

METRICS = ("mIoU", "fwIoU", "mACC", "pACC")
STAGE_RECORD = (
    "stage.json"  # written last: {"settings": fingerprint, "seconds": wall time of the sitting that ended it}
)

RunStage = Callable[[CfgNode], Any]


def split_name(data_set: str, split: str) -> str:
    return f"{data_set}_sem_seg_{split}"


def stage_cfg(
    configs: Path, name: str, source: str, target: str, output: Path, weights: str, opts: Sequence[str]
) -> CfgNode:
    """The config ``<configs>/<name>.yaml`` of one stage ("source", "estimator" or a method), for this pair."""
    source_train, source_val = (split_name(source, split) for split in ("train", "val"))
    target_train, target_val = (split_name(target, split) for split in ("train", "val"))
    is_source = name == "source"
    overrides: list[Any] = ["OUTPUT_DIR", str(output / name)]
    overrides += ["DATASETS.TRAIN", (source_train if is_source else target_train,)]
    overrides += ["DATASETS.TEST", (source_val, target_val) if is_source else (target_val,)]
    if name == "estimator":
        overrides += ["DATASETS.SOURCE_TRAIN", (source_train,), "DATASETS.SOURCE_TEST", (source_val,)]
    if weights:
        overrides += ["MODEL.WEIGHTS", weights]
    return setup_cfg(str(configs / f"{name}.yaml"), [*overrides, *opts])


def run_pair(
    configs: Path,
    source: str,
    target: str,
    methods: Sequence[str],
    output: Path,
    opts: Sequence[str] = (),
    run: RunStage | None = None,
) -> dict[str, Any]:
    """Run what is missing of source training, estimator training and fine-tuning; return what ``results.json`` holds.

    A stage that ended with the same settings is not run again; one that was interrupted goes on from its last
    checkpoint.

    Args:
        configs: folder with ``source.yaml``, ``estimator.yaml`` and ``<method>.yaml``.
        source, target: data set names such as "cityscapes"; their splits are ``<name>_sem_seg_train`` and ``_val``.
        methods: fine-tuning methods. output: one folder per stage is made in it.
        opts: KEY VALUE ... overrides for every stage.
        run: how a stage is run; by default in this process.

    Raises:
        ValueError: unknown method, or ``output`` holds a stage that ran with other settings.
    """
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}: choose from {', '.join(METHODS)}")
    source_weights = str(output / "source" / "model_final.pth")
    estimator_weights = str(output / "estimator" / "model_final.pth")
    weights = {"source": "", "estimator": source_weights}
    weights |= {method: estimator_weights if method == "tmt" else source_weights for method in methods}
    names = ["source", *(["estimator"] if "tmt" in methods else []), *methods]
    cfgs = {name: stage_cfg(configs, name, source, target, output, weights[name], opts) for name in names}
    for cfg in cfgs.values():
        check_stage(cfg)
    for name, cfg in cfgs.items():
        _run_missing(name, cfg, run or run_stage_here)
    return _collect(output, source, target, methods, names)


def run_stage_here(cfg: CfgNode) -> None:
    """Run a stage in this process, from its last checkpoint if it has one."""
    run_stage(cfg, resume=True)


def _run_missing(name: str, cfg: CfgNode, run: RunStage) -> None:
    folder = Path(cfg.OUTPUT_DIR)
    record_file, settings = folder / STAGE_RECORD, settings_fingerprint(cfg)
    if record_file.is_file():
        if json.loads(record_file.read_text())["settings"] != settings:
            raise ValueError(
                f"{folder} holds stage {name} run with other settings (see its config.yaml): choose another --output, "
                "or delete the folder to run it again"
            )
        logger.info("stage %s: done before, in %s", name, folder)
        return
    logger.info("stage %s: running, in %s", name, folder)
    start = time.perf_counter()
    run(cfg)
    write_json(record_file, {"settings": settings, "seconds": time.perf_counter() - start})


def settings_fingerprint(cfg: CfgNode) -> str:
    """Equal for configs that must give equal results: all keys but where to write and how many loader processes."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.WEIGHTS = "", 0, Path(cfg.MODEL.WEIGHTS).name
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def _collect(output: Path, source: str, target: str, methods: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    def read(name: str, file: str) -> dict[str, Any]:
        return json.loads((output / name / file).read_text())

    def metrics(name: str, data_set: str) -> dict[str, float]:
        values = read(name, RESULTS["source"])[split_name(data_set, "val")]
        return {metric: values[metric] for metric in METRICS}

    results = {
        "source": source,
        "target": target,
        "source_on_source": metrics("source", source),
        "source_on_target": metrics("source", target),
        "methods": {method: metrics(method, target) for method in methods},
        "proxy_a_distance": read("estimator", RESULTS["estimator"])["proxy_a_distance"] if "estimator" in names else [],
        "seconds": {name: read(name, STAGE_RECORD)["seconds"] for name in names},
    }
    write_json(output / "results.json", results)
    return results


def results_table(results: dict[str, Any]) -> str:
    """The paper-style table of one pair, in percent."""
    source, target = results["source"], results["target"]
    rows = [
        ("source model", source, *results["source_on_source"].values()),
        ("source model", target, *results["source_on_target"].values()),
        *((f"fine-tuned: {name}", target, *values.values()) for name, values in results["methods"].items()),
    ]
    table = tabulate(rows, headers=("model", "evaluated on", *METRICS), floatfmt=".1f")
    distances = ", ".join(f"{value:.2f}" for value in results["proxy_a_distance"])
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in results["seconds"].items())
    pad = f"\nproxy A-distance at strides 32, 16, 8: {distances}" if distances else ""
    return f"{table}\n{pad}\ntime: {times}"
