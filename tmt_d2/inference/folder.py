"""Prediction of many images to files: labels, overlays, confidence and transferability."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml
from tqdm import tqdm

from tmt_d2.config import model_settings
from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE, LabelSpace
from tmt_d2.data.reader import PNG, DataError
from tmt_d2.engine.run_dir import claim
from tmt_d2.errors import UserError
from tmt_d2.evaluation.inference import MAX_SCORE_PIXELS
from tmt_d2.inference.choices import KINDS
from tmt_d2.inference.images import InputImage, InputImages
from tmt_d2.inference.predictor import Prediction, Predictor
from tmt_d2.utils.files import atomic_write, sha256_of, write_json
from tmt_d2.visualization.overlays import label_overlay

IDENTITY = "predictions.json"
CLASSES = "classes.json"
MAX_NAME = 255  # bytes of a file name


@dataclass
class Outcome:
    """Result of ``predict_images``.

    Attributes:
        predicted: number of images predicted now.
        present: number of images whose files were complete before.
        broken: image name -> why it could not be read.
    """

    predicted: int = 0
    present: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.predicted} images predicted"]
        parts += [f"{self.present} already present"] if self.present else []
        parts += [f"{len(self.broken)} unreadable"] if self.broken else []
        return ", ".join(parts)


def predict_images(
    predictor: Predictor,
    images: InputImages,
    output: Path,
    kinds: Sequence[str] = KINDS[:2],
    ids: np.ndarray | None = None,
    batch: int = 8,
) -> Outcome:
    """Write ``output/KIND/NAME.png`` for each image and kind.

    Images whose files are all complete and not older than the image are skipped.

    labels: gray PNG of class indices, or of ``ids[class index]``. overlays: the image in the colors of its classes.
    confidence: score of the best class divided by the sum over classes, times 255. transferability: T, mean over the
    levels, times 255.

    Args:
        ids: (256,) uint8, see ``ids_table``.
        batch: see ``predictions``.
    """
    outcome = Outcome()
    files = {kind: output / kind for kind in kinds}

    with tqdm(total=images.count or None, unit="image", desc=images.place) as progress:

        def missing() -> Iterator[InputImage]:
            for image in images:
                if all(_is_complete(png_path(folder, image.name), image) for folder in files.values()):
                    outcome.present += 1
                    progress.update()
                else:
                    yield image

        for image, pixels, prediction in predictions(predictor, missing(), batch):
            if pixels is None or isinstance(prediction, DataError):
                outcome.broken[image.name] = str(prediction)
                tqdm.write(f"left out: {prediction}")
            else:
                for kind, folder in files.items():
                    write_png(
                        png_path(folder, image.name), _file_content(kind, pixels, prediction, ids, predictor.classes)
                    )
                outcome.predicted += 1
            progress.update()
    return outcome


def predictions(
    predictor: Predictor, images: Iterable[InputImage], batch: int = 8
) -> Iterator[tuple[InputImage, np.ndarray | None, Prediction | DataError]]:
    """Yield each image in order with its (H, W, 3) RGB pixels and its prediction, or with None and its error.

    Args:
        batch: maximum number of consecutive images of one size in a forward pass; together they have at most
            ``MAX_SCORE_PIXELS`` pixels, which bounds the memory of the scores.
    """
    waiting: list[tuple[InputImage, np.ndarray]] = []

    def predict_waiting() -> Iterator[tuple[InputImage, np.ndarray, Prediction]]:
        results = predictor.batch([pixels for _, pixels in waiting], size=batch)
        for (image, pixels), prediction in zip(waiting, results):
            yield image, pixels, prediction
        waiting.clear()

    def fits(pixels: np.ndarray) -> bool:
        area = pixels.shape[0] * pixels.shape[1]
        same_size = pixels.shape == waiting[0][1].shape
        return same_size and len(waiting) < batch and area * (len(waiting) + 1) <= MAX_SCORE_PIXELS

    for image in images:
        try:
            pixels = image.read("RGB")
        except DataError as error:
            yield from predict_waiting()
            yield image, None, error
            continue
        if waiting and not fits(pixels):
            yield from predict_waiting()
        waiting.append((image, pixels))
    yield from predict_waiting()


def claim_output(
    output: Path, predictor: Predictor, images: InputImages, ids: str, calibration: str | None = None
) -> None:
    """Record in ``output`` which images, model and settings its files come from.

    Raises:
        UserError: the folder holds predictions of other images, models or settings, or files of unknown origin.
    """
    cfg, place, path = predictor.cfg, images.place, output / IDENTITY
    settings = {key: cfg.INPUT[key] for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST", "FORMAT")}
    settings |= {key: yaml.safe_load(cfg.TEST[key].dump()) for key in ("SLIDING_WINDOW", "AUG")}
    weights = cfg.MODEL.WEIGHTS
    identity = {
        "--input": str(Path(place).resolve()) if Path(place).exists() else place,
        "common folder of the images": images.top,
        "--weights": sha256_of(weights).hexdigest() if Path(weights).is_file() else weights,
        "--ids": ids,
        "--calibration": calibration and sha256_of(calibration).hexdigest(),
        "INPUT or TEST settings": settings,
        "MODEL.TMT": yaml.safe_load(cfg.MODEL.TMT.dump()),
        "MODEL settings": hashlib.sha256((model_settings(cfg) + cfg.TEST.PRECISION).encode()).hexdigest(),
    }
    if not path.is_file():
        for folder in (output / kind for kind in KINDS):
            if folder.is_dir() and any(folder.iterdir()):
                message = f"{folder} holds files of another program"
                raise UserError(message, key="--output", value=str(output), hint="choose another folder")
    claim(path, identity)


def ids_table(label_space: LabelSpace) -> np.ndarray:
    """Return the table class index -> id of the data set's own label files: (256,) uint8; 255 stays.

    Raises:
        UserError: several ids belong to one class.
    """
    table = np.full(256, IGNORE, np.uint8)
    own: dict[int, int] = {}
    for value, train_id in sorted(label_space.train_ids.items()):
        if train_id in own:
            message = f"ids {own[train_id]} and {value} are both {label_space.classes.names[train_id]}"
            raise UserError(message, key="--ids", value=label_space.name, hint="leave it out, for train ids")
        own[train_id] = table[train_id] = value
    return table


def write_classes(output: Path, classes: ClassList, ids: np.ndarray | None = None) -> None:
    """Write ``output/classes.json``: {"classes": [{"id": 0, "name": "road", "color": [r, g, b]}, ...]}.

    Args:
        ids: see ``ids_table``; classes without an id are left out.
    """
    own = range(len(classes)) if ids is None else ids[: len(classes)].tolist()
    rows = zip(own, classes.names, classes.colors, strict=True)
    entries = [{"id": id_, "name": name, "color": list(color)} for id_, name, color in rows if id_ != IGNORE]
    write_json(output / CLASSES, {"classes": entries})


def png_path(folder: Path, name: str) -> Path:
    """Return ``folder/NAME.png``, or its beginning and a digest where the name is too long for file systems."""
    path = folder / f"{name}.png"
    if len(os.fsencode(path.name)) <= MAX_NAME:
        return path
    return path.with_name(f"{path.name[:40]}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.png")


def write_png(path: Path, image: np.ndarray) -> None:
    """Write ``image`` (H, W) or (H, W, 3) RGB, uint8, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    with atomic_write(path) as file:
        file.write(encoded)


def _file_content(
    kind: str, pixels: np.ndarray, prediction: Prediction, ids: np.ndarray | None, classes: ClassList
) -> np.ndarray:
    """Return (H, W) or (H, W, 3) uint8."""
    labels = prediction.labels.numpy()
    if kind == "labels":
        return labels if ids is None else ids[labels]
    if kind == "overlays":
        return label_overlay(pixels, labels, classes)
    if kind == "confidence":
        values = prediction.confidence()
    else:
        assert prediction.transferability is not None  # checked before the first image
        values = prediction.transferability.mean(0)
    gray = (values.numpy() * 255).round().astype(np.uint8)
    return cv2.resize(gray, labels.shape[::-1], interpolation=cv2.INTER_LINEAR) if gray.shape != labels.shape else gray


def _is_complete(path: Path, image: InputImage) -> bool:
    """Test that a PNG file has its beginning and its end, since a copied folder may be cut off, and is not outdated."""
    source = Path(image.record["file_name"])
    if not path.is_file() or (source.is_file() and source.stat().st_mtime > path.stat().st_mtime):
        return False
    with path.open("rb") as file:
        begins = file.read(len(PNG)) == PNG
        file.seek(max(0, path.stat().st_size - 8))
        return begins and file.read(4) == b"IEND"
