"""What a unit leaves in its folder: the values it measured and, written last, ``stage.json``, the record of its end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from detectron2.config import CfgNode

from tmt_d2.engine.checkpoint.checkpointer import keep_weights
from tmt_d2.engine.run_dir import RESULTS, check_identity
from tmt_d2.utils.files import read_json, write_json

STAGE_RECORD = "stage.json"
BEGINNING = "begun.json"
DAMAGED = "delete the folder to run it again"
SCORES_FILE = "scores.json"


@dataclass(frozen=True, order=True)
class Labels:
    """How many labelled target pictures a fine-tuning had: a share of them, or else a number. The smaller the less,
    if every number is less than every share.

    listed: the name of the list that names them; empty: they were drawn at random.
    """

    fraction: float
    count: int = 0
    listed: str = ""

    def __str__(self) -> str:
        if self.fraction:
            return "all labels" if self.fraction == 1 else f"{self.fraction:.3g} of the labels"
        chosen = f" ({self.listed})" if self.listed else ""
        return f"{self.count} label{'s' if self.count != 1 else ''}{chosen}"


ALL = Labels(1.0)


class _Source(TypedDict):
    kind: str
    source: str
    seed: int


class About(_Source, total=False):
    """What a unit is for.

    kind: of ``KINDS``. target: of all but source models. variant: of an estimator that differs from the shared one,
    empty for that. method, label_fraction or label_count: of fine-tuning; label_list, images: name and digest of the
    list that names the labeled images, where one does; sweep, key, value: of one in a sweep. weights: digest of the
    checkpoint that is the source model, where the unit only evaluates it.
    """

    target: str
    variant: str
    method: str
    label_fraction: float
    label_count: int
    label_list: str
    images: str
    sweep: str
    key: str
    value: Any
    weights: str


def labels_of(about: Mapping[str, Any]) -> Labels:
    """Of a fine-tuning."""
    if "label_count" in about:
        return Labels(0.0, about["label_count"], about.get("label_list", ""))
    return Labels(about["label_fraction"])


class Identity(TypedDict, total=False):
    """What, beside its config, tells a unit from others; scores: arguments of ``score_checkpoint``."""

    unit: About
    scores: dict[str, int]


class StageRecord(Identity, total=False):
    """settings: the fingerprint; made_from: of each unit that it needs, with all that that one needs; seconds: of the
    sitting that ended it; bytes: on disk."""

    settings: str
    made_from: Mapping[str, str]
    seconds: float
    bytes: int


def settings_fingerprint(cfg: CfgNode, identity: Identity) -> str:
    """Equal for configs that must give equal results: all keys but where to write and how many loader processes; of
    files that are read only the names."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.WEIGHTS = "", 0, Path(cfg.MODEL.WEIGHTS).name
    cfg.TRANSFER.LABEL_LIST = Path(cfg.TRANSFER.LABEL_LIST).name
    return hashlib.sha256((cfg.dump() + json.dumps(identity, sort_keys=True)).encode()).hexdigest()


def is_done(cfg: CfgNode, identity: Identity, made_from: Mapping[str, str]) -> bool:
    """Return whether the folder's unit has ended with these settings.

    Raises:
        UserError: it ended, or began, with other settings, or was made from a unit with others.
    """
    folder = Path(cfg.OUTPUT_DIR)
    done = (folder / STAGE_RECORD).is_file()
    there = read_record(folder) if done else _read_beginning(folder)
    if there:
        here = {"settings": settings_fingerprint(cfg, identity), **made_from}
        hint = "choose another --output, or delete the folder to run it again"
        check_identity({"settings": there["settings"], **there["made_from"]}, here, folder, hint)
    return done


def write_beginning(cfg: CfgNode, identity: Identity, made_from: Mapping[str, str]) -> None:
    """What the run in this folder is of, until it has ended."""
    path = Path(cfg.OUTPUT_DIR) / BEGINNING
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"settings": settings_fingerprint(cfg, identity), "made_from": made_from})


def _read_beginning(folder: Path) -> StageRecord:
    try:
        return read_json(folder / BEGINNING, ("settings", "made_from"), DAMAGED)
    except FileNotFoundError:  # another process may just have ended it
        return {}


def write_record(cfg: CfgNode, identity: Identity, made_from: Mapping[str, str], seconds: float) -> None:
    """Record that the stage has ended; nothing trains on from it: of its checkpoint only the weights are kept."""
    folder = Path(cfg.OUTPUT_DIR)
    keep_weights(folder)  # before the record: others read the checkpoint from then on
    (folder / BEGINNING).unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ended = {"settings": settings_fingerprint(cfg, identity), "made_from": made_from, "seconds": seconds, "bytes": size}
    write_json(folder / STAGE_RECORD, {**ended, **identity})


def read_record(folder: Path) -> StageRecord:
    return read_json(folder / STAGE_RECORD, ("settings", "made_from", "seconds"), DAMAGED)


def read_values(folder: Path, kind: str) -> Mapping[str, Any]:
    """Scores of kind "scores", measures of kind "estimator"; of every other kind {split: metrics}."""
    file = SCORES_FILE if kind == "scores" else RESULTS.get(kind, RESULTS["source"])
    return read_json(folder / file, remedy=DAMAGED)
