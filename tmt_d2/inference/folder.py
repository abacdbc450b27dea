"""What a model says about many pictures, as files: labels, overlays, confidence, transferability."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from detectron2.config import CfgNode
from tqdm import tqdm

from tmt_d2.config import model_settings
from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE, LabelSpace
from tmt_d2.data.reader import PNG, DataError
from tmt_d2.engine.run_dir import claim
from tmt_d2.errors import UserError
from tmt_d2.inference.predictor import Prediction, Predictor
from tmt_d2.inference.streaming import Picture, Pictures, predictions
from tmt_d2.utils.files import atomic_write, sha256_of, write_json
from tmt_d2.visualization.overlays import label_overlay

KINDS = ("labels", "overlays", "confidence", "transferability")  # each a folder of PNG files
IDENTITY = "predictions.json"
CLASSES = "classes.json"
MAX_NAME = 255  # bytes of a file's name
Report = Callable[[str], Any]


@dataclass
class Outcome:
    """What became of the pictures: how many were predicted now, how many before, and by name why one was not."""

    predicted: int = 0
    present: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.predicted} pictures predicted"]
        parts += [f"{self.present} were there already"] if self.present else []
        parts += [f"{len(self.broken)} could not be read"] if self.broken else []
        return ", ".join(parts)


def ids_table(label_space: LabelSpace) -> np.ndarray:
    """(256,) uint8: train id -> the data set's own id; 255 stays.

    Raises:
        UserError: several of its ids are one class.
    """
    table = np.full(256, IGNORE, np.uint8)
    own: dict[int, int] = {}
    for value, train_id in sorted(label_space.train_ids.items()):
        if train_id in own:
            name = label_space.classes.names[train_id]
            raise UserError(f"{label_space.name} has ids {own[train_id]} and {value} for {name}: take train ids")
        own[train_id] = table[train_id] = value
    return table


def predict_files(
    predictor: Predictor,
    pictures: Pictures,
    output: Path,
    kinds: Sequence[str] = KINDS[:2],
    ids: np.ndarray | None = None,
    batch: int = 8,
    report: Report = tqdm.write,
) -> Outcome:
    """``output/KIND/NAME.png`` of every picture and kind; those that have all of them, whole and not older than the
    picture, are not predicted again.

    labels: grey PNG of train ids (or ``ids[train id]``). overlays: the picture in the colours of its classes.
    confidence: the share of the best class in the sum of all classes' scores, 0-255. transferability: T, the mean of
    the levels, 0-255.

    Args:
        ids: (256,) uint8 as of ``ids_table``. report: told, in a line, of each picture that cannot be read.
    """
    outcome = Outcome()
    files = {kind: output / kind for kind in kinds}

    with tqdm(total=pictures.count or None, unit="picture", desc=pictures.place) as progress:

        def missing() -> Iterator[Picture]:
            for picture in pictures:
                if all(_is_whole(png_path(folder, picture.name), picture) for folder in files.values()):
                    outcome.present += 1
                    progress.update()
                else:
                    yield picture

        for picture, pixels, prediction in predictions(predictor, missing(), batch):
            if pixels is None or isinstance(prediction, DataError):
                outcome.broken[picture.name] = str(prediction)
                report(f"left out: {prediction}")
            else:
                for kind, folder in files.items():
                    drawn = _drawn(kind, pixels, prediction, ids, predictor.classes)
                    write_png(png_path(folder, picture.name), drawn)
                outcome.predicted += 1
            progress.update()
    return outcome


def claim_output(output: Path, cfg: CfgNode, pictures: Pictures, ids: str) -> None:
    """Say in ``output`` what its files come from.

    Raises:
        UserError: they come from other pictures, another model, other settings or other ids: they would be mixed; or
            nobody knows what they come from: they would be overwritten, or taken for predictions.
    """
    place = pictures.place
    path = output / IDENTITY
    settings = {key: cfg.INPUT[key] for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST", "FORMAT")}
    settings |= {key: yaml.safe_load(cfg.TEST[key].dump()) for key in ("SLIDING_WINDOW", "AUG")}
    identity = {
        "--input": str(Path(place).resolve()) if Path(place).exists() else place,
        "pictures below": pictures.top,
        "--weights": _digest(cfg.MODEL.WEIGHTS),
        "--ids": ids,
        "settings of INPUT and TEST": settings,
        "MODEL.TMT": yaml.safe_load(cfg.MODEL.TMT.dump()),
        "settings of MODEL": hashlib.sha256((model_settings(cfg) + cfg.TEST.PRECISION).encode()).hexdigest(),
    }
    if not path.is_file():
        foreign = [output / kind for kind in KINDS if (output / kind).is_dir() and any((output / kind).iterdir())]
        if foreign:
            message = f"{foreign[0]} holds files that this command has not written"
            raise UserError(message, key="--output", value=str(output), hint="choose another --output")
    claim(path, identity)


def write_classes(output: Path, classes: ClassList, ids: np.ndarray | None = None) -> None:
    """``output/classes.json``, what the ids in label files mean.

    {"classes": [{"id": 0, "name": "road", "color": [r, g, b]}, ...]}

    Args:
        ids: as of ``predict_files``; a class that has none of them is left out.
    """
    own = range(len(classes)) if ids is None else ids[: len(classes)].tolist()
    rows = zip(own, classes.names, classes.colors, strict=True)
    entries = [{"id": id_, "name": name, "color": list(color)} for id_, name, color in rows if id_ != IGNORE]
    write_json(output / CLASSES, {"classes": entries})


def _digest(file: str) -> str:
    if not Path(file).is_file():
        return file  # a URL
    return sha256_of(file).hexdigest()


def _drawn(
    kind: str, pixels: np.ndarray, prediction: Prediction, ids: np.ndarray | None, classes: ClassList
) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8."""
    labels = prediction.labels.numpy()
    if kind == "labels":
        return labels if ids is None else ids[labels]
    if kind == "overlays":
        return label_overlay(pixels, labels, classes)
    if kind == "confidence":
        values = prediction.confidence()
    else:
        assert prediction.transferability is not None  # checked before the first picture
        values = prediction.transferability.mean(0)
    grey = (values.numpy() * 255).round().astype(np.uint8)
    return cv2.resize(grey, labels.shape[::-1], interpolation=cv2.INTER_LINEAR) if grey.shape != labels.shape else grey


def png_path(folder: Path, name: str) -> Path:
    """``folder/NAME.png``; where file systems take no name so long, its beginning and a digest of it."""
    path = folder / f"{name}.png"
    if len(os.fsencode(path.name)) <= MAX_NAME:
        return path
    return path.with_name(f"{path.name[:40]}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.png")


def write_png(path: Path, picture: np.ndarray) -> None:
    """picture: (H, W) or (H, W, 3) RGB, uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    with atomic_write(path) as file:
        file.write(encoded)


def _is_whole(path: Path, picture: Picture) -> bool:
    """A PNG file with its beginning and its end, no older than the picture: files appear whole here, but a copy of them
    may not."""
    source = Path(picture.record["file_name"])
    if not path.is_file() or (source.is_file() and source.stat().st_mtime > path.stat().st_mtime):
        return False
    with path.open("rb") as file:
        begins = file.read(len(PNG)) == PNG
        file.seek(max(0, path.stat().st_size - 8))
        return begins and file.read(4) == b"IEND"
