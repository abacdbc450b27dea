"""A proposal of pictures to label, as files: a list that training reads, a table of reasons, a page to look at."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tmt_d2.data.image_lists import ImageNames, list_line, write_names
from tmt_d2.data.labeled import named
from tmt_d2.data.reader import read_image
from tmt_d2.inference.predictor import Predictor
from tmt_d2.inference.streaming import Pictures
from tmt_d2.projects.label_selection.pool import Pool
from tmt_d2.projects.label_selection.strategies import Choice
from tmt_d2.utils.files import atomic_write
from tmt_d2.visualization.html import templates
from tmt_d2.visualization.overlays import label_overlay

LIST, TABLE, PAGE = "selected.txt", "selected.csv", "selected.html"
TRAINING_LIST = "labelled.txt"  # with --labelled: those of that list and the proposed ones
CLASSES_SHOWN, WIDTH = 4, 420


@dataclass(frozen=True)
class Row:
    """Why a picture is proposed.

    rank: from 1. line: what stands in the list. cluster: -1 = none. T: 1 - E of its mean logit; None without an
    estimator. classes: of the most predicted ones name and share. nearest: the labelled or higher ranked picture with
    the most similar features, and the distance to it; empty for the first of all.
    """

    rank: int
    line: str
    file: str
    entropy: float
    margin: float
    transferability: float | None
    cluster: int
    classes: list[tuple[str, float]]
    nearest: str
    distance: float


def list_lines(pool: Pool) -> list[str]:
    """What names each picture in a list: its file's name where that is enough, else the absolute path."""
    names = [os.path.basename(file) for file in pool.files]
    count = Counter(names)
    return [name if count[name] == 1 else os.path.abspath(file) for name, file in zip(names, pool.files)]


@dataclass(frozen=True)
class Named:
    """Names and files of pictures, as a pool has them."""

    names: Sequence[str]
    files: Sequence[str]

    @classmethod
    def of(cls, pictures: Pictures) -> Named:
        names, files = zip(*((picture.name, str(picture.record["file_name"])) for picture in pictures))
        return cls(names, files)


def labelled_indices(pool: Pool | Named, file: str) -> np.ndarray:
    """Which pictures of the pool the lines of a list name: by file name, path, or name in the pool.

    Raises:
        UserError: as ``named``.
    """
    names = ImageNames(pool.files, [[name] for name in pool.names])
    return np.array(named("--labelled", file, names, "pictures of the pool"), np.int64)


def rows_of(pool: Pool, choice: Choice, labelled: np.ndarray, class_names: Sequence[str]) -> list[Row]:
    lines, rows = list_lines(pool), []
    for rank, index in enumerate(choice.indices, 1):
        before = [*labelled.tolist(), *choice.indices[: rank - 1]]
        nearest, distance = "", float("nan")
        if before:
            distances = np.linalg.norm(pool.features[before] - pool.features[index], axis=1)
            nearest, distance = lines[before[int(np.argmin(distances))]], float(distances.min())
        order = np.argsort(-pool.classes[index], kind="stable")[:CLASSES_SHOWN]
        domain = float(pool.domain[index])
        rows.append(
            Row(
                rank,
                lines[index],
                pool.files[index],
                float(pool.entropy[index]),
                float(pool.margin[index]),
                None if np.isnan(domain) else float(1 / (1 + np.exp(domain))),
                -1 if choice.clusters is None else int(choice.clusters[index]),
                [(class_names[i], float(pool.classes[index, i])) for i in order if pool.classes[index, i] > 0],
                nearest,
                distance,
            )
        )
    return rows


def write_list(path: Path, rows: Sequence[Row]) -> None:
    write_names(path, [row.line for row in rows])


def write_table(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "picture", "entropy", "margin", "T", "cluster", "classes", "nearest", "distance"])
    for row in rows:
        values = ["" if value is None else f"{value:.4f}" for value in (row.entropy, row.margin, row.transferability)]
        classes = "; ".join(f"{name} {share:.3f}" for name, share in row.classes)
        cluster = "" if row.cluster < 0 else row.cluster
        writer.writerow([row.rank, row.line, *values, cluster, classes, row.nearest, f"{row.distance:.4f}"])
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())


def write_page(path: Path, rows: Sequence[Row], predictor: Predictor, about: dict[str, Any]) -> None:
    """One HTML file that needs nothing else: each picture and what is predicted on it, why, and a box to drop it.

    about: facts for the head of the page, in their order.
    """

    def thumbnails(file: str) -> list[np.ndarray]:
        pixels = read_image(file, "RGB")
        overlay = label_overlay(pixels, predictor.batch([pixels])[0].labels.numpy(), predictor.classes)
        size = (WIDTH, max(1, round(WIDTH * pixels.shape[0] / pixels.shape[1])))
        return [cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (pixels, overlay)]

    page = templates(__package__).get_template("proposal.html")
    with atomic_write(path, "w") as file:
        file.write(page.render(rows=rows, about=about, thumbnails=thumbnails, list_line=list_line, list_name=LIST))
