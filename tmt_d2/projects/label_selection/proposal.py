"""Output files of a selection: a list that training reads, a table of the statistics, an HTML page."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tmt_d2.data.image_lists import list_line, listed_indices, names_in_lists, write_names
from tmt_d2.data.reader import read_image
from tmt_d2.inference.predictor import Predictor
from tmt_d2.projects.label_selection.pool import Pool
from tmt_d2.projects.label_selection.strategies import Selection
from tmt_d2.utils.files import atomic_write
from tmt_d2.visualization.html import templates
from tmt_d2.visualization.overlays import label_overlay

LIST, TABLE, PAGE = "selected.txt", "selected.csv", "selected.html"
TRAINING_LIST = "labeled.txt"  # with --labeled: the images of that list and the selected ones
CLASSES_SHOWN, WIDTH = 4, 420


@dataclass(frozen=True)
class SelectedImage:
    """One selected image.

    Attributes:
        rank: from 1.
        name: in the list.
        transferability: 1 - E of the mean logit; None without an estimator.
        cluster: -1 if there is none.
        classes: name and share of the most predicted classes.
        nearest, distance: the labeled or higher-ranked image with the most similar features; "" and NaN if none.
    """

    rank: int
    name: str
    file: str
    entropy: float
    margin: float
    transferability: float | None
    cluster: int
    classes: list[tuple[str, float]]
    nearest: str
    distance: float


def labeled_indices(names: Sequence[str], files: Sequence[str], list_file: str) -> np.ndarray:
    """Return the ascending indices of the images that a list names, by file name, path, or name in the pool.

    Raises:
        UserError: the list cannot be read, or a line names no image or several.
    """
    indices, _ = listed_indices("--labeled", list_file, files, [[name] for name in names])
    return np.array(indices, np.int64)


def write_proposal(
    output: Path,
    pool: Pool,
    selection: Selection,
    labeled: np.ndarray,
    predictor: Predictor,
    facts: dict[str, Any],
) -> Path:
    """Write list, table and page to ``output``; with labeled images also the list of both.

    Args:
        labeled: rows of the pool that have a label. facts: name -> value, for the head of the page.

    Returns:
        the list for training.
    """
    names = names_in_lists(pool.files)
    images = selected_images(pool, selection, labeled, predictor.classes.names, names)
    lists = {LIST: list[str]()}
    if len(labeled):
        lists[TRAINING_LIST] = [names[index] for index in labeled]
    for file, others in lists.items():
        write_names(output / file, [*others, *(image.name for image in images)])
    write_table(output / TABLE, images)
    write_page(output / PAGE, images, predictor, facts, lists)
    return output / [*lists][-1]


def selected_images(
    pool: Pool, selection: Selection, labeled: np.ndarray, class_names: Sequence[str], names: Sequence[str]
) -> list[SelectedImage]:
    """Return the selected images, the first rank first; names: of the images of the pool, in lists."""
    images = []
    for rank, index in enumerate(selection.indices, 1):
        earlier = [*labeled.tolist(), *selection.indices[: rank - 1]]
        nearest, distance = "", float("nan")
        if earlier:
            distances = np.linalg.norm(pool.features[earlier] - pool.features[index], axis=1)
            nearest, distance = names[earlier[int(np.argmin(distances))]], float(distances.min())
        shares = pool.classes[index]
        order = np.argsort(-shares, kind="stable")[:CLASSES_SHOWN]
        domain = float(pool.domain[index])
        images.append(
            SelectedImage(
                rank,
                names[index],
                pool.files[index],
                float(pool.entropy[index]),
                float(pool.margin[index]),
                None if np.isnan(domain) else float(1 / (1 + np.exp(domain))),
                -1 if selection.clusters is None else int(selection.clusters[index]),
                [(class_names[i], float(shares[i])) for i in order if shares[i] > 0],
                nearest,
                distance,
            )
        )
    return images


def write_table(path: Path, images: Sequence[SelectedImage]) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "image", "entropy", "margin", "T", "cluster", "classes", "nearest", "distance"])
        for image in images:
            values = (image.entropy, image.margin, image.transferability)
            numbers = ["" if value is None else f"{value:.4f}" for value in values]
            classes = "; ".join(f"{name} {share:.3f}" for name, share in image.classes)
            cluster = "" if image.cluster < 0 else image.cluster
            writer.writerow(
                [image.rank, image.name, *numbers, cluster, classes, image.nearest, f"{image.distance:.4f}"]
            )


def write_page(
    path: Path,
    images: Sequence[SelectedImage],
    predictor: Predictor,
    facts: dict[str, Any],
    lists: Mapping[str, Sequence[str]],
) -> None:
    """Write one self-contained HTML file: every image, its prediction, its statistics, and a box to deselect it.

    Args:
        facts: name -> value, for the head of the page.
        lists: file that the page saves -> names that precede the images that are not deselected.
    """

    def thumbnails(file: str) -> list[np.ndarray]:
        pixels = read_image(file, "RGB")
        overlay = label_overlay(pixels, predictor.batch([pixels])[0].labels.numpy(), predictor.classes)
        size = (WIDTH, max(1, round(WIDTH * pixels.shape[0] / pixels.shape[1])))
        return [cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (pixels, overlay)]

    page = templates(__package__).get_template("proposal.html")
    lines = {name: "".join(f"{list_line(other)}\n" for other in others) for name, others in lists.items()}
    with atomic_write(path, "w") as file:
        file.write(page.render(images=images, facts=facts, thumbnails=thumbnails, list_line=list_line, lists=lines))
