"""Folders as train_matrix.py leaves them, with invented figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.checkout import TINY_CONFIG
from tmt_d2 import setup_cfg
from tmt_d2.data.datasets.label_spaces import CLASSES


def record(folder: Path, values: Mapping[str, Any], file: str = "evaluation.json", **about: Any) -> None:
    folder.mkdir(parents=True)
    (folder / file).write_text(json.dumps(values))
    (folder / "stage.json").write_text(json.dumps({"settings": "", "made_from": {}, "seconds": 12.0, "unit": about}))


def metrics(miou: float, rng: np.random.Generator) -> dict[str, Any]:
    values = {"mIoU": miou, "fwIoU": miou + 20, "mACC": miou + 10, "pACC": miou + 25}
    ious = {f"IoU-{name}": miou + rng.normal(0, 15) for name in CLASSES} | {"IoU-train": None}
    return {"split": values | ious}


def make_matrix(
    output: Path,
    domains: tuple[str, ...],
    seeds: int,
    methods: Mapping[str, float],
    fractions: tuple[float, ...] = (1.0,),
) -> None:
    """An output folder as train_matrix.py leaves it, with invented figures; methods: their gain over full."""
    rng = np.random.default_rng(0)
    texts = {name: setup_cfg(TINY_CONFIG, method=name).dump() for name in {"source", "estimator", "full", *methods}}
    for seed in range(1, seeds + 1):
        for source in domains:
            folder = output / f"source/{source}/seed{seed}"
            record(folder, metrics(60, rng), kind="source", source=source, seed=seed)
            (folder / "config.yaml").write_text(texts["source"])
            for target in domains:
                if source == target:
                    continue
                about = {"source": source, "target": target, "seed": seed}
                level = 30 + 5 * domains.index(target) - 2 * domains.index(source) + rng.normal(0, 1)
                record(
                    output / f"evaluation/{source}-{target}/seed{seed}",
                    metrics(level - 12, rng),
                    **about,
                    kind="evaluation",
                )
                scores = {"LEEP": level / 20 - 3, "F-OTCE": rng.normal(-1, 0.2), "JC-OTCE": -1.0, "PAD": 2 - level / 30}
                record(output / f"scores/{source}-{target}/seed{seed}", scores, "scores.json", **about, kind="scores")
                estimator = {
                    "proxy_a_distance": [1.5, 1.6, 1.7],
                    "std_of_t_within_image": [0.1, 0.2, 0.1],
                    "rank_stability": [0.8, 0.7, 0.6],
                    "mean_t_by_class": [{name: float(rng.uniform()) for name in CLASSES[:12]} for _ in range(3)],
                }
                folder = output / f"estimator/{source}-{target}/seed{seed}"
                record(folder, estimator, "estimator.json", **about, kind="estimator", variant="")
                (folder / "config.yaml").write_text(texts["estimator"])
                for fraction in fractions:
                    for method, gain in methods.items():
                        folder = output / f"finetune/{source}-{target}/{method}/labels{fraction:g}/seed{seed}"
                        value = level + gain + 4 * np.log2(fraction) + rng.normal(0, 0.3)
                        about_it = {**about, "kind": "finetune", "method": method, "label_fraction": fraction}
                        record(folder, metrics(float(value), rng), **about_it)
                        (folder / "config.yaml").write_text(texts[method])
                        lines = [{"iteration": i, "total_loss": 40 / (1 + i / 40) - gain} for i in range(19, 120, 20)]
                        (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
                for value in (0.0, 0.1, 0.5) if "tmt" in methods else ():
                    swept = {
                        "sweep": "p_T",
                        "key": "MODEL.TMT.P_T",
                        "value": value,
                        "method": "tmt",
                        "label_fraction": 1.0,
                    }
                    folder = output / f"finetune/{source}-{target}/tmt/p_T-{value:g}/labels1/seed{seed}"
                    record(folder, metrics(level + value, rng), **about, kind="finetune", **swept)


METHODS = {"linear": -9.0, "full": 0.0, "leep": 0.1, "tmt": 1.5}


def three_domains(output: Path) -> Path:
    make_matrix(output, ("bdd100k", "cityscapes", "gtav"), 2, METHODS, (1.0, 0.25))
    return output
