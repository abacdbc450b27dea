"""Pictures one after the other from wherever they are, and what a model says about them, in bounded memory.

for picture in find_pictures("photos"): array = picture.read("RGB")
for picture, pixels, prediction in predictions(predictor, find_pictures("drive.mp4")): ...
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog

from tmt_d2.data.datasets.registration import records_of
from tmt_d2.data.image_files import image_files
from tmt_d2.data.image_lists import listed_names
from tmt_d2.data.reader import ChannelOrder, DataError, read_image_of
from tmt_d2.errors import UserError, did_you_mean
from tmt_d2.evaluation.inference import MAX_SCORE_PIXELS
from tmt_d2.inference.predictor import Prediction, Predictor

logger = logging.getLogger(__name__)

VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
LISTS = {".txt", ".lst"}


@dataclass(frozen=True)
class Picture:
    """One picture, not yet read.

    name: of its own in its place: the path below the folder that all share, without suffix; of a frame its number.
    record: Detectron2's, with ``file_name`` (a frame: of its video), and label file and data set where they are known.
    read: channel order -> (H, W, 3) uint8. A video's frame is read before the next one is asked for, or not at all.
        Raises DataError.
    """

    name: str
    record: Mapping[str, Any]
    read: Callable[[ChannelOrder], np.ndarray]


@dataclass(frozen=True)
class Pictures:
    """The pictures of one place in their order, as often as they are iterated over.

    count: how many; of a video, what its header says. left_out: files of a folder that are no pictures. top: the folder
    that all share.
    """

    place: str
    count: int
    left_out: int
    _iterate: Callable[[], Iterator[Picture]]
    top: str = ""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Picture]:
        return self._iterate()


def find_pictures(place: str) -> Pictures:
    """
    Args:
        place: a registered split; a folder, with those below it; a text file (.txt, .lst) with a path a line, relative
            to it; a video; or one image.

    Raises:
        FileNotFoundError: it is none of these. UserError: there is no picture in it.
    """
    path, left_out = Path(place), 0
    if place in DatasetCatalog.list():
        return _of_records(place, records_of([place]))
    if path.is_dir():
        images, left_out = image_files(path)
    elif not path.is_file():
        nearest = did_you_mean(place, DatasetCatalog.list())
        raise FileNotFoundError(f"{place}: no such image, folder, list, video or registered split{nearest}")
    elif path.suffix.lower() in VIDEOS:
        with _opened(place) as video:
            return Pictures(place, max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))), 0, partial(_frames, place))
    elif path.suffix.lower() in LISTS:
        lines = listed_names("the list", place, lambda line: (path.parent / line).is_file())
        images = [path.parent / line for line in lines]
    else:
        images = [path]
    return _of_records(place, [{"file_name": str(file)} for file in images], left_out)


def check_apart(output: Path, place: str, option: str) -> None:
    """
    Raises:
        UserError: ``output`` lies in the folder ``place`` (of ``option``): its pictures would be found next time.
    """
    if Path(place).is_dir() and output.resolve().is_relative_to(Path(place).resolve()):
        raise UserError(f"--output {output} lies in {option} {place}: its pictures would be taken for input next time")


def _of_records(place: str, records: Sequence[Mapping[str, Any]], left_out: int = 0) -> Pictures:
    files = [os.path.abspath(record["file_name"]) for record in records]
    top = os.path.commonpath([os.path.dirname(file) for file in files])
    names = _names([Path(file).relative_to(top) for file in files])

    def iterate() -> Iterator[Picture]:
        for name, record in zip(names, records):
            yield Picture(name, record, partial(read_image_of, record))

    return Pictures(place, len(records), left_out, iterate, top)


def _names(paths: Sequence[Path]) -> list[str]:
    """Without suffix where that is enough to tell them apart."""
    same = Counter(path.with_suffix("") for path in paths)
    names = [str(path.with_suffix("") if same[path.with_suffix("")] == 1 else path) for path in paths]
    return names if len({*names}) == len(names) else [str(path) for path in paths]  # a.png.jpg beside a.png and a.jpg


class _opened:
    """A video that is closed at the end of the block."""

    def __init__(self, file: str) -> None:
        self.video = cv2.VideoCapture(file)
        if not self.video.isOpened():
            raise DataError(f"{file}: cannot be decoded as a video")

    def __enter__(self) -> cv2.VideoCapture:
        return self.video

    def __exit__(self, *error: object) -> None:
        self.video.release()


def _frames(file: str) -> Iterator[Picture]:
    """Frames are named by their number from 0. Those that are not read are not decoded either."""
    with _opened(file) as video:
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        number = 0
        while video.grab():
            yield Picture(f"{number:06d}", {"file_name": file}, partial(_retrieve, video, file, number))
            number += 1
        if number < count:
            # No error: of many containers the count is a guess from duration and frame rate.
            logger.warning("%s: ends after %d frames; its header states about %d", file, number, count)


def _retrieve(video: cv2.VideoCapture, file: str, number: int, format: ChannelOrder) -> np.ndarray:
    whole, frame = video.retrieve()
    if not whole:
        raise DataError(f"{file}: frame {number} cannot be decoded")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if format == "RGB" else frame


def predictions(
    predictor: Predictor, pictures: Iterable[Picture], batch: int = 8
) -> Iterator[tuple[Picture, np.ndarray | None, Prediction | DataError]]:
    """Every picture in its order, its (H, W, 3) RGB pixels, and its prediction; or None and why it cannot be read.

    Args:
        batch: pictures in a row that have one size share a forward pass, at most so many, and no more than
            ``MAX_SCORE_PIXELS`` pixels together: so much memory the scores take, however many pictures there are.
    """
    waiting: list[tuple[Picture, np.ndarray]] = []

    def predicted() -> Iterator[tuple[Picture, np.ndarray, Prediction]]:
        answers = predictor.batch([pixels for _, pixels in waiting], size=batch)
        for (picture, pixels), prediction in zip(waiting, answers):
            yield picture, pixels, prediction
        waiting.clear()

    for picture in pictures:
        try:
            pixels = picture.read("RGB")
        except DataError as error:
            yield from predicted()
            yield picture, None, error
            continue
        if waiting and not _fits(pixels, [each for _, each in waiting], batch):
            yield from predicted()
        waiting.append((picture, pixels))
    yield from predicted()


def _fits(pixels: np.ndarray, others: Sequence[np.ndarray], batch: int) -> bool:
    area = pixels.shape[0] * pixels.shape[1]
    return len(others) < batch and pixels.shape == others[0].shape and area * (len(others) + 1) <= MAX_SCORE_PIXELS
