"""Proposals: images to label next, or images to measure on, with what an annotation tool imports."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.image_lists import write_names
from tmt_d2.errors import UserError
from tmt_d2.inference.folder import png_path, write_classes, write_png
from tmt_d2.inference.statistics import model_identity
from tmt_d2.projects.annotation.matching import bare
from tmt_d2.projects.annotation.orientation import copy_as_stored
from tmt_d2.projects.annotation.writers import labeling_config, write_cvat_masks, write_label_studio
from tmt_d2.projects.label_selection.pool import Pool, score_pool
from tmt_d2.projects.label_selection.prelabels import FOLDER, write_prelabels
from tmt_d2.projects.label_selection.proposal import PAGE as SELECTION_PAGE
from tmt_d2.projects.label_selection.proposal import TABLE, selected_images, write_table
from tmt_d2.projects.label_selection.proposal import write_page as write_selection_page
from tmt_d2.projects.label_selection.strategies import AUTO, STRATEGIES, check_strategy
from tmt_d2.projects.loop.estimator import draw, strata_of
from tmt_d2.projects.loop.page import PAGE, write_page
from tmt_d2.projects.loop.project import COPIES, FRAME, ROUNDS, SELECTED, Model, Project, next_number
from tmt_d2.projects.loop.state import predicted_confusions
from tmt_d2.utils.files import atomic_write

STRATA, HARDEST = 5, 6
DRAFT = ".draft"


def propose(
    project: Project,
    budget: int,
    tool: str = "cvat",
    purpose: str = "train",
    *,
    confidence: float = 0.0,
) -> Path:
    """Write ``rounds/NN`` with proposed images, which appears when it is complete.

    Args:
        tool: of ``TOOLS``; purpose: of ``PURPOSES``. Images for the test come without pre-labels, which would make
            the model look better than it is.
        confidence: pixels with a less confident prediction have no pre-label.

    Returns:
        the folder.

    Raises:
        UserError: there are fewer images, ``confidence`` is not in [0, 1), or scikit-learn is not installed.
    """
    if not 0 <= confidence < 1:
        raise UserError("must be at least 0 and below 1", key="--confidence", value=confidence)
    project.refresh()
    free = project.free()
    if not 1 <= budget <= len(free):
        raise UserError(f"there are {len(free)} images to choose from", key="--budget", value=budget)
    model, hardest = project.newest_model(), list[str]()
    if purpose == "train" and model is not None:
        check_strategy(AUTO)
    number = next_number(project.folder / ROUNDS)
    draft = project.folder / ROUNDS / f"{DRAFT}{number}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rng = np.random.default_rng(int(number))
    if purpose == "test":
        names = _propose_test(project, model, draft, budget, rng)
    elif model is None:
        names = [free[index] for index in rng.permutation(len(free))[:budget]]
        write_names(draft / SELECTED, names)
    else:
        names, hardest = _propose_training(project, model, draft, budget, rng, confidence)
    for name in names:
        copy = draft / COPIES / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy_as_stored(project.files[name], copy)
    write_for_tool(project, draft, names, tool)
    overlays = {name: prelabel_file(draft, name) for name in names}
    use = "to measure on" if purpose == "test" else "to train on"
    write_page(project, draft / PAGE, overlays, hardest, f"Round {number}: {budget} images {use}")
    folder = draft.with_name(number)
    os.replace(draft, folder)
    project.refresh()
    return folder


def _propose_training(
    project: Project, model: Model, draft: Path, budget: int, rng: np.random.Generator, confidence: float
) -> tuple[list[str], list[str]]:
    """Return the proposed images, and the unlabeled ones with the least certain predictions."""
    predictor = project.predictor(model)
    identity = model_identity(predictor.cfg)
    pool = project.cached(
        f"pool-{model.number:02d}", lambda folder: score_pool(predictor, project.images, folder, identity)
    )
    names = [project.names[os.path.abspath(file)] for file in pool.files]
    test, free = {*project.test()}, {*project.free()}
    pool = subset(replace(pool, names=names), [index for index, name in enumerate(names) if name not in test])
    names = pool.names
    has_label = np.array([index for index, name in enumerate(names) if name not in free], np.int64)  # or will have
    if budget > len(pool) - len(has_label):
        raise UserError(f"only {len(pool) - len(has_label)} images can be read", key="--budget", value=budget)
    selection = STRATEGIES[AUTO](pool, budget, has_label, rng)
    facts = {"proposed": f"{budget} of {len(pool)} images", "strategy": AUTO, "model": model.weights}
    images = selected_images(pool, selection, has_label, predictor.classes.names, names)
    write_names(draft / SELECTED, [image.name for image in images])
    write_table(draft / TABLE, images)
    write_selection_page(draft / SELECTION_PAGE, images, predictor, facts, {SELECTED: []})
    bare_pool = replace(pool, names=[bare(name) for name in names])
    write_prelabels(draft, bare_pool, selection.indices, predictor, confidence=confidence)
    hardest = [names[index] for index in np.argsort(-pool.entropy, kind="stable") if names[index] in free]
    return [image.name for image in images], hardest[:HARDEST]


def subset(pool: Pool, indices: Sequence[int]) -> Pool:
    """Return some images of a pool."""
    rows: dict[str, Any] = {}
    for field in fields(pool):
        value = getattr(pool, field.name)
        if isinstance(value, list):
            rows[field.name] = [value[index] for index in indices]
        elif isinstance(value, np.ndarray):
            rows[field.name] = value[[*indices]]
    return replace(pool, **rows)


def _propose_test(
    project: Project, model: Model | None, draft: Path, budget: int, rng: np.random.Generator
) -> list[str]:
    """Draw from the strata of the first draw, or make them; write ``test.csv`` with every image that may be drawn."""
    rows: list[dict[str, Any]] = list(project.frame())
    free_names = project.free()
    if not rows:
        rows = [{"image": name, "stratum": 0, "quality": 0.5, "round": ""} for name in free_names]
        if model is not None:
            predictor = project.predictor(model)
            confusions, _ = predicted_confusions(project, model, predictor)
            rows = [row for row in rows if row["image"] in confusions]
            quality = np.array([np.trace(confusions[row["image"]]) for row in rows])
            for row, value, stratum in zip(rows, quality, strata_of(quality, max(1, min(STRATA, budget // 4)))):
                row |= {"quality": f"{value:.4f}", "stratum": int(stratum)}
    strata, quality = (np.array([row[key] for row in rows], float) for key in ("stratum", "quality"))
    strata = strata.astype(int)
    drawn = np.array([bool(row["round"]) for row in rows])
    free = np.isin([row["image"] for row in rows], free_names)
    if budget > free.sum():
        raise UserError(f"there are {free.sum()} images to draw from", key="--budget", value=budget)
    new = draw(strata, quality, drawn, free, budget, rng)
    for index in new:
        rows[index]["round"] = draft.name.removeprefix(DRAFT)
    drawn[new] = True
    for row, stratum in zip(rows, strata):
        row["probability"] = f"{drawn[strata == stratum].mean():.6f}"
    with atomic_write(draft / FRAME, "w") as file:
        writer = csv.DictWriter(file, ["image", "stratum", "quality", "probability", "round"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        writer.writerows(row for row in project.whole_frame() if row["image"] not in project.files)  # may come back
    names = [rows[index]["image"] for index in new]
    write_names(draft / SELECTED, names)
    return names


def write_for_tool(project: Project, folder: Path, names: Sequence[str], tool: str) -> None:
    """Write ``folder/TOOL``: the labels of the tool's project, and pre-labels where ``folder/prelabels`` has them."""
    classes, output = project.classes().classes, folder / tool
    output.mkdir()
    files = {name: prelabel_file(folder, name) for name in names}
    labels = [(path, np.asarray(Image.open(file))) for path, file in files.items() if file.is_file()]
    if tool == "cvat":
        rows = zip(classes.names, classes.colors)
        content = [{"name": name, "color": f"#{bytes(color).hex()}", "attributes": []} for name, color in rows]
        (output / "labels.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        if labels:
            write_cvat_masks(output / "prelabels.zip", classes, labels)
    elif tool == "label-studio":
        (output / "labeling_config.xml").write_text(labeling_config(classes), encoding="utf-8")
        nothing = np.full((1, 1), IGNORE, np.uint8)
        write_label_studio(output / "tasks.json", classes, labels or [(path, nothing) for path in files])
    else:
        write_classes(output, classes)
        for path, label in labels:
            write_png(output / "labels" / f"{bare(path)}.png", label)


def prelabel_file(folder: Path, name: str) -> Path:
    return png_path(folder / FOLDER, bare(name))
