"""Input images from a folder, a list, a registered split, a video or a single file, read one after the other.

for image in find_images("photos"):
    array = image.read("RGB")
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from tmt_d2.errors import did_you_mean
from tmt_d2.inference.choices import VIDEOS

logger = logging.getLogger(__name__)

LISTS = {".txt", ".lst"}


@dataclass(frozen=True)
class InputImage:
    """An image that is not read yet.

    Attributes:
        name: unique among the images of one place: the path below their common folder, without suffix; the number of
            a video frame.
        record: Detectron2's, with ``file_name`` (of a frame: the video), and label file and data set where known.
        read: channel order -> (H, W, 3) uint8; raises DataError. A frame must be read before the next one is taken.
    """

    name: str
    record: Mapping[str, Any]
    read: Callable[[ChannelOrder], np.ndarray]

    @classmethod
    def of(cls, record: Mapping[str, Any], name: str = "") -> InputImage:
        return cls(name or Path(record["file_name"]).stem, record, partial(read_image_of, record))


@dataclass(frozen=True)
class InputImages:
    """The images of one place, in order; may be iterated over several times.

    Attributes:
        count: number of images; for a video the number that its header states.
        left_out: number of files in a folder that are no images.
        top: common folder of the images; empty for a video.
    """

    place: str
    count: int
    left_out: int
    iterate: Callable[[], Iterator[InputImage]]
    top: str = ""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[InputImage]:
        return self.iterate()


def find_images(place: str) -> InputImages:
    """Find the images that a command-line option names.

    Args:
        place: a registered split; a folder, searched with its subfolders; a text file (.txt, .lst) with one path per
            line, relative to that file; a video; or an image.

    Raises:
        FileNotFoundError: ``place`` is none of these.
        UserError: it holds no image.
    """
    path = Path(place)
    if place in DatasetCatalog.list():
        return _of_records(place, records_of([place]))
    if path.is_dir():
        files, left_out = image_files(path)
        return _of_files(place, files, left_out)
    if not path.is_file():
        nearest = did_you_mean(place, DatasetCatalog.list())
        raise FileNotFoundError(f"{place}: no such image, folder, list, video or registered split{nearest}")
    if path.suffix.lower() in VIDEOS:
        with _open_video(place) as video:
            count = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        return InputImages(place, count, 0, partial(_frames, place))
    if path.suffix.lower() in LISTS:
        lines = listed_names("the list", place, lambda line: (path.parent / line).is_file())
        return _of_files(place, [path.parent / line for line in lines])
    return _of_files(place, [path])


def _of_files(place: str, files: Sequence[Path], left_out: int = 0) -> InputImages:
    return _of_records(place, [{"file_name": str(file)} for file in files], left_out)


def _of_records(place: str, records: Sequence[Mapping[str, Any]], left_out: int = 0) -> InputImages:
    files = [os.path.abspath(record["file_name"]) for record in records]
    top = os.path.commonpath([os.path.dirname(file) for file in files])
    names = _names([Path(file).relative_to(top) for file in files])
    return InputImages(place, len(records), left_out, lambda: map(InputImage.of, records, names), top)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the paths as unique names, without suffix where possible."""
    same = Counter(path.with_suffix("") for path in paths)
    names = [str(path.with_suffix("") if same[path.with_suffix("")] == 1 else path) for path in paths]
    return names if len({*names}) == len(names) else [str(path) for path in paths]  # a.png.jpg beside a.png and a.jpg


@contextmanager
def _open_video(file: str) -> Iterator[cv2.VideoCapture]:
    video = cv2.VideoCapture(file)
    try:
        if not video.isOpened():
            raise DataError("cannot be decoded as a video", key=file)
        yield video
    finally:
        video.release()


def _frames(file: str) -> Iterator[InputImage]:
    """Yield frames named by their number from 0; a frame that is not read is not decoded."""
    with _open_video(file) as video:
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        number = 0
        while video.grab():
            yield InputImage(f"{number:06d}", {"file_name": file}, partial(_decode, video, file, number))
            number += 1
        if number < count:
            # Not an error: in many containers the count is a guess from duration and frame rate.
            logger.warning("%s: ends after %d frames; its header states about %d", file, number, count)


def _decode(video: cv2.VideoCapture, file: str, number: int, format: ChannelOrder) -> np.ndarray:
    decoded, frame = video.retrieve()
    if not decoded:
        raise DataError(f"frame {number} cannot be decoded", key=file)
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if format == "RGB" else frame
