"""A whole pair: the stages of one (source, target) that are still missing, then a table and ``results.json``."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate

from tmt_d2.config import setup_cfg
from tmt_d2.files import write_json
from tmt_d2.training.checkpoint import keep_weights
from tmt_d2.training.stages import RESULTS, check_stage, run_stage

logger = logging.getLogger(__name__)

METRICS = ("mIoU", "fwIoU", "mACC", "pACC")
STAGE_RECORD = (
    "stage.json"  # written last: {"settings": fingerprint, "seconds": of the sitting that ended it, "bytes": on disk}
)

RunStage = Callable[[CfgNode], Any]
# What an estimator is trained for: a method that says something else here needs one of its own.
ESTIMATOR_KEYS = ("REGIONS", "CELL_SIZES", "ITERATIONS", "KAPPA", "DISCRIMINATOR")


def split_name(data_set: str, split: str) -> str:
    return f"{data_set}_sem_seg_{split}"


def stage_cfg(
    configs: Path, name: str, source: str, target: str, output: Path, weights: str, opts: Sequence[str]
) -> CfgNode:
    """The config ``<configs>/<name>.yaml`` of one stage for this pair; its folder is ``<output>/<name>``.

    Args:
        name: "source", "estimator" or a method, which is any file of ``configs`` that fine-tunes.
        weights: MODEL.WEIGHTS; empty leaves what the file says.
    """
    source_train, source_val = (split_name(source, split) for split in ("train", "val"))
    target_train, target_val = (split_name(target, split) for split in ("train", "val"))
    is_source = name == "source"
    overrides: list[Any] = ["OUTPUT_DIR", str(output / name)]
    overrides += ["DATASETS.TRAIN", (source_train if is_source else target_train,)]
    overrides += ["DATASETS.TEST", (source_val, target_val) if is_source else (target_val,)]
    if not is_source:
        overrides += ["DATASETS.SOURCE_TRAIN", (source_train,), "DATASETS.SOURCE_TEST", (source_val,)]
    if weights:
        overrides += ["MODEL.WEIGHTS", weights]
    return setup_cfg(str(configs / f"{name}.yaml"), [*overrides, *opts])


def check_methods(configs: Path, methods: Sequence[str]) -> None:
    """Raise a ValueError for methods without a file in ``configs``, or with one of another stage."""
    known = sorted(path.stem for path in configs.glob("*.yaml") if path.stem not in ("Base", "source", "estimator"))
    unknown = [method for method in methods if method not in known]
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}: {configs} has {', '.join(known) or 'none'}")
    for method in methods:
        stage = setup_cfg(str(configs / f"{method}.yaml")).TRANSFER.STAGE
        if stage != "finetune":
            raise ValueError(f"{configs / method}.yaml is of stage {stage}: a method has TRANSFER.STAGE finetune")


def needs_estimator(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "TransferableMaskFormer"


def estimator_cfg(shared: CfgNode, method: CfgNode) -> CfgNode:
    """The estimator stage ``shared`` with what ``method`` says about regions and discriminators.

    Where that differs, the last part of its folder says how: ``estimator-square``.
    """
    cfg = shared.clone()
    cfg.defrost()
    differences = []
    for key in ESTIMATOR_KEYS:
        if cfg.MODEL.TMT[key] != method.MODEL.TMT[key]:
            cfg.MODEL.TMT[key] = method.MODEL.TMT[key]
            differences.append(_short(key, method.MODEL.TMT[key]))
    cfg.OUTPUT_DIR = "-".join([cfg.OUTPUT_DIR, *differences])
    cfg.freeze()
    return cfg


def _short(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, CfgNode):
        return "_".join(f"{name.lower()}{item}" for name, item in value.items())
    return key.lower() + "_".join(map(str, value if isinstance(value, (list, tuple)) else [value]))


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
        configs: folder with ``source.yaml``, ``estimator.yaml`` and ``<method>.yaml``, e.g. ``tmt-square.yaml``.
        source, target: data set names such as "cityscapes"; their splits are ``<name>_sem_seg_train`` and ``_val``.
        methods: fine-tuning methods. output: one folder per stage is made in it.
        opts: KEY VALUE ... overrides for every stage.
        run: how a stage is run; by default in this process.

    Raises:
        ValueError: unknown method, or ``output`` holds a stage that ran with other settings.
    """
    check_methods(configs, methods)

    def cfg_of(name: str, weights: str = "") -> CfgNode:
        return stage_cfg(configs, name, source, target, output, weights, opts)

    cfgs = {"source": cfg_of("source")}
    source_weights = str(output / "source" / "model_final.pth")
    fine_tuning = {}
    for method in methods:
        cfg = cfg_of(method, source_weights)
        if needs_estimator(cfg):
            estimator = estimator_cfg(cfg_of("estimator", source_weights), cfg)
            cfgs[Path(estimator.OUTPUT_DIR).name] = estimator
            cfg = cfg_of(method, f"{estimator.OUTPUT_DIR}/model_final.pth")
        fine_tuning[method] = cfg
    cfgs |= fine_tuning
    for cfg in cfgs.values():
        check_stage(cfg)
    for name, cfg in cfgs.items():
        run_missing(name, cfg, run or run_stage_here)
    return _collect(output, source, target, methods, list(cfgs))


def run_stage_here(cfg: CfgNode) -> None:
    """Run a stage in this process, from its last checkpoint if it has one."""
    run_stage(cfg, resume=True)


def run_missing(name: str, cfg: CfgNode, run: RunStage, about: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Run a stage unless its folder says that it ended with these settings.

    Nothing trains on from a stage that has ended: its checkpoint keeps the weights only.

    Args:
        about: is written into the record beside the settings and the time.

    Raises:
        ValueError: the folder holds a stage that ended with other settings.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if is_done(name, cfg, about):
        logger.info("stage %s: done before, in %s", name, folder)
        return
    logger.info("stage %s: running, in %s", name, folder)
    start = time.perf_counter()
    run(cfg)
    seconds = time.perf_counter() - start
    if comm.is_main_process():
        keep_weights(folder)  # before the record: others read the checkpoint from then on
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        record = {"settings": settings_fingerprint(cfg, about), "seconds": seconds, "bytes": size, **about}
        write_json(folder / STAGE_RECORD, record)
    comm.synchronize()


def is_done(name: str, cfg: CfgNode, about: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """As ``run_missing``, without running."""
    record_file = Path(cfg.OUTPUT_DIR) / STAGE_RECORD
    if not record_file.is_file():
        return False
    if json.loads(record_file.read_text())["settings"] != settings_fingerprint(cfg, about):
        raise ValueError(
            f"{record_file.parent} holds stage {name} run with other settings (see its config.yaml): choose another "
            "--output, or delete the folder to run it again"
        )
    return True


def settings_fingerprint(cfg: CfgNode, about: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Equal for configs that must give equal results: all keys but where to write and how many loader processes."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.WEIGHTS = "", 0, Path(cfg.MODEL.WEIGHTS).name
    text = cfg.dump() + (json.dumps(about, sort_keys=True) if about else "")
    return hashlib.sha256(text.encode()).hexdigest()


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
