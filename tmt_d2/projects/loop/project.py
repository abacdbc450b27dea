"""The folder of an adaptation: everything that was decided, as files, and lists that follow from them.

Kept: ``project.yaml``, ``classes.json``, ``config.yaml``, ``labels/`` (as ``tools/import_labels.py`` writes it),
``rounds/NN/`` (proposals) and ``models/NN/`` (trainings). ``labeled.txt``, ``unlabeled.txt``, ``test.txt``, ``lists/``,
``test.csv`` and ``data.yaml`` follow from them and are written again by ``Project.refresh``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from detectron2.config import CfgNode

from tmt_d2.config.file import UniqueKeys
from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.datasets.registration import split_name
from tmt_d2.data.image_lists import list_line, listed_names, names_in_lists
from tmt_d2.errors import UserError
from tmt_d2.inference.folder import CLASSES
from tmt_d2.inference.images import InputImages
from tmt_d2.inference.predictor import Predictor
from tmt_d2.projects.annotation.importing import LABELS as LABEL_FILES
from tmt_d2.projects.annotation.importing import check_names, data_set, data_set_text, images_below
from tmt_d2.projects.annotation.labels import LabelClasses, classes_of_json
from tmt_d2.projects.annotation.matching import bare
from tmt_d2.projects.loop.choices import CONFIG, PROJECT
from tmt_d2.utils.files import atomic_write
from tmt_d2.utils.lock import file_lock

DATA, LABELS, ROUNDS, MODELS = "data.yaml", "labels", "rounds", "models"
LABELED, UNLABELED, TEST, FRAME = "labeled.txt", "unlabeled.txt", "test.txt", "test.csv"
LISTS = "lists"
OWN = (CLASSES, CONFIG, DATA, LABELED, UNLABELED, TEST, FRAME, LISTS, LABELS, ROUNDS, MODELS)  # written or removed
SELECTED, COPIES, TRAINED_ON, FINISHED = "selected.txt", "images", "labels.csv", "evaluation.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """A model of the project.

    Attributes:
        number: of the training, from 1; 0: the source model.
        trained_on: images whose labels it was trained on.
    """

    number: int
    config: Path
    weights: str
    trained_on: frozenset[str] = frozenset()


class Project:
    """A folder that ``start`` has written.

    The places in ``project.yaml`` may be relative to the folder.

    Attributes:
        place: folder of the images of the new city.
        weights: of the source model, from which every training starts; empty without one.
        source_custom: data set files of the source. source_train, source_test: registered splits; empty without them.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            UserError: the folder is no project, or something that it needs is no longer in its place.
        """
        self.folder = Path(folder).resolve()
        file = self.folder / PROJECT
        if not file.is_file():
            raise UserError(f"has no {PROJECT}", key="--project", value=str(folder), hint="name a folder of `start`")
        try:
            values = yaml.load(file.read_text(encoding="utf-8"), UniqueKeys)
            places = {key: str(values[key] or "") for key in ("images", "weights")}
            source = (list(values[f"source_{key}"] or ()) for key in ("custom", "train", "test"))
            self.source_custom, self.source_train, self.source_test = source
        except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
            raise UserError(f"is damaged ({' '.join(str(error).split())})", key=file, hint="correct it") from error
        self.place = self._existing("images", places["images"])
        self.weights = places["weights"] and self._existing("weights", places["weights"])
        self.source_custom = [self._existing("source_custom", place) for place in self.source_custom]

    def _existing(self, key: str, place: str) -> str:
        """Return the absolute path of a place in ``project.yaml``."""
        path = (self.folder / place).resolve()
        if not path.exists():
            file = self.folder / PROJECT
            raise UserError(
                "does not exist", key=f"{file}: {key}", value=place, hint="write its new place into this file"
            )
        return str(path)

    # --- images and labels

    @cached_property
    def images(self) -> InputImages:
        """The images below ``place``; their names do not change when others are added."""
        return images_below(self.place)

    @cached_property
    def files(self) -> dict[str, str]:
        """Name, the path below ``place``, -> absolute path, of every image."""
        return files_of(self.images)

    @cached_property
    def names(self) -> dict[str, str]:
        """Absolute path -> name, of every image."""
        return {path: name for name, path in self.files.items()}

    @cached_property
    def _listed(self) -> dict[str, str]:
        """Line of a list -> name, of every image: its name, its absolute path, its file name if no other has it."""
        in_lists = dict(zip(names_in_lists([*self.names]), self.files))
        return in_lists | self.names | {name: name for name in self.files}

    def label_of(self, name: str) -> Path:
        return self.folder / LABELS / LABEL_FILES / f"{bare(name)}.png"

    def classes(self) -> LabelClasses:
        file = self.folder / CLASSES
        return classes_of_json(str(file), file.read_text(encoding="utf-8"))

    def with_label(self) -> list[str]:
        return [name for name in self.files if self.label_of(name).is_file()]

    def labeled(self) -> list[str]:
        """Return the images to train on."""
        test = {*self.test()}
        return [name for name in self.with_label() if name not in test]

    def free(self) -> list[str]:
        """Return the images that may be proposed: without a label, and in no round."""
        taken = {*self.test(), *self.with_label()}.union(*map(self.proposed, self.rounds()))
        return [name for name in self.files if name not in taken]

    # --- rounds

    def rounds(self) -> list[Path]:
        """Return the folders of all complete proposals, in order."""
        return _numbered(self.folder / ROUNDS)

    def proposed(self, folder: Path) -> list[str]:
        """Return the images of a round that are still there; the list may be one that ``selected.html`` saved."""
        return [self._listed[line] for line in self._selected(folder) if line in self._listed]

    def gone(self) -> list[str]:
        """Return the names of images that a round proposed and that are not there now, not even in another format."""
        lines = {line for folder in self.rounds() for line in self._selected(folder) if line not in self._listed}
        names, there = {line.removeprefix(f"{self.place}/") for line in lines}, {bare(name) for name in self.files}
        return sorted(name for name in names if bare(name) not in there)

    def _selected(self, folder: Path) -> list[str]:
        return listed_names(SELECTED, folder / SELECTED, self.files.__contains__)

    def copies(self) -> dict[str, Path]:
        """Return name -> its copy in a round, which annotation tools show, of every image that has one."""
        files = {name: folder / COPIES / name for folder in self.rounds() for name in self.proposed(folder)}
        return {name: file for name, file in files.items() if file.is_file()}

    def frame(self) -> list[dict[str, str]]:
        """Return the rows of ``test.csv`` with an image: all that could be drawn for the test; [] without one."""
        return [row for row in self.whole_frame() if row["image"] in self.files]

    def whole_frame(self) -> list[dict[str, str]]:
        """Return the rows of ``test.csv``, also those of images that are not there now."""
        return list(csv.DictReader(io.StringIO(self._frame_text())))

    def _frame_text(self) -> str:
        files = [file for folder in self.rounds() if (file := folder / FRAME).is_file()]
        return files[-1].read_text(encoding="utf-8") if files else ""

    def test(self) -> list[str]:
        """Return the images that were drawn for the test; they are never trained on."""
        return [row["image"] for row in self.frame() if row["round"]]

    def missing(self) -> dict[str, list[str]]:
        """Return "label files" and "test images" -> those whose image was renamed or removed, or is offline."""
        folder, known = self.folder / LABELS / LABEL_FILES, {f"{bare(name)}.png" for name in self.files}
        labels = sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} - known)
        tests = [row["image"] for row in self.whole_frame() if row["round"] and row["image"] not in self.files]
        return {kind: names for kind, names in (("label files", labels), ("test images", tests)) if names}

    # --- models

    def models(self) -> list[Model]:
        """Return the source model, if there is one, and all that are trained."""
        models = [Model(0, self.folder / CONFIG, self.weights)] if self.weights else []
        for folder in _numbered(self.folder / MODELS):
            weights = folder / "model_final.pth"
            if (folder / FINISHED).is_file() and weights.is_file():
                lines = trained_lines(folder)
                trained_on = frozenset(name for name in self.files if list_line(name) in lines)
                models.append(Model(int(folder.name), folder / CONFIG, str(weights), trained_on))
        return models

    def predictor(self, model: Model) -> Predictor:
        """Load a model with the data sets of this folder, which may have been moved since its training."""
        return Predictor.from_config(str(model.config), model.weights, ["DATASETS.CUSTOM", str(self.data_set_files())])

    def data_set_files(self) -> tuple[str, ...]:
        """Return the YAML files of the source and, once there are labels, of the project."""
        own = self.folder / DATA
        return (*self.source_custom, str(own)) if own.is_file() else (*self.source_custom,)

    def newest_training(self) -> Path | None:
        """Return the folder of the training that was prepared last; it may not have ended."""
        return next((each for each in reversed(_numbered(self.folder / MODELS)) if (each / TRAINED_ON).is_file()), None)

    def newest_model(self) -> Model | None:
        return next(reversed(self.models()), None)

    def cached(self, name: str, compute: Callable[[Path], T]) -> T:
        """Return ``compute(folder)`` for a folder of statistics; one of other images or models is emptied.

        Another process that needs the same folder waits: ``status`` may run beside any other command.
        """
        folder = self.folder / "cache" / name
        with file_lock(folder.with_name(f"{name}.lock"), wait=True):
            try:
                return compute(folder)
            except UserError as error:
                if error.key != str(folder):
                    raise
                shutil.rmtree(folder)
                return compute(folder)

    # --- files that follow from the others

    def refresh(self) -> None:
        """Write the lists and ``data.yaml`` again, where they have changed."""
        labeled, test, with_label = self.labeled(), {*self.test()}, {*self.with_label()}
        lists = {
            LABELED: labeled,
            TEST: [name for name in self.files if name in test & with_label],
            UNLABELED: [name for name in self.files if name not in with_label | test],
        }
        for file, names in lists.items():
            self._write_list(self.folder / file, names)
        _replace(self.folder / FRAME, self._frame_text())
        _replace(self.folder / DATA, data_set_text(self._data_set(lists)) if with_label else "")

    def _write_list(self, path: Path, names: list[str]) -> None:
        lines = (list_line(os.path.relpath(self.files[name], path.parent)) for name in names)
        _replace(path, "".join(f"{line}\n" for line in lines))

    def _data_set(self, lists: dict[str, list[str]]) -> dict[str, Any]:
        """Return a data set like that of the import, with a split for each list instead of one for all images.

        Where images are in folders of several depths, there is a split for each depth, with its own list.
        """
        images = self.images.top, list(self.files), self.with_label()
        of_labels = data_set(self.folder / LABELS, *images, self.classes())
        splits: dict[str, dict[str, Any]] = {}
        for split, patterns in of_labels["splits"].items():
            depth = split.removeprefix("train").removeprefix("_")
            for purpose, file in (("train", LABELED), ("unlabeled", UNLABELED), ("test", TEST)):
                names = [name for name in lists[file] if not depth or name.count("/") == int(depth)]
                if depth:
                    file = f"{LISTS}/{purpose}_{depth}.txt"
                    self._write_list(self.folder / file, names)
                if not names:
                    continue
                keys = ("unlabeled",) if purpose == "unlabeled" else ("images", "labels")
                of_split = {key: patterns[key] for key in keys} | {"list": file, "subset": True}
                splits[f"{purpose}_{depth}" if depth else purpose] = of_split
        root = os.path.relpath(self.folder / LABELS / of_labels["root"], self.folder)
        return of_labels | {"name": self.data_name, "root": root, "splits": splits}

    @property
    def data_name(self) -> str:
        return re.sub(r"\W|^(?![A-Za-z])", "_", f"own_{self.folder.name}", flags=re.ASCII)

    def splits(self) -> dict[str, list[str]]:
        """Return "train", "unlabeled" and "test" -> names of the registered splits of ``data.yaml``; [] if empty."""
        splits: dict[str, list[str]] = {"train": [], "unlabeled": [], "test": []}
        if (self.folder / DATA).is_file():
            for split in read_custom(self.folder / DATA).splits:
                splits[split.partition("_")[0]].append(split_name(self.data_name, split))
        return splits

    def label_digests(self) -> str:
        """Return a table of the images to train on with a digest of each label file."""
        digests = {name: hashlib.sha256(self.label_of(name).read_bytes()).hexdigest() for name in self.labeled()}
        return "".join(f"{digest[:16]},{list_line(name)}\n" for name, digest in {"image": "sha256", **digests}.items())


def write_config(path: Path, cfg: CfgNode) -> None:
    with atomic_write(path, "w") as file:
        file.write(cfg.dump())


def files_of(images: InputImages) -> dict[str, str]:
    """Return name -> absolute path of every image.

    Raises:
        UserError: as ``check_names``.
    """
    files = [os.path.abspath(image.record["file_name"]) for image in images]
    names = [Path(os.path.relpath(file, images.top)).as_posix() for file in files]
    check_names(names, files)
    return dict(zip(names, files))


def trained_lines(folder: Path) -> set[str]:
    """Return the lines of a list (see ``list_line``) for the images that a training uses."""
    lines = (folder / TRAINED_ON).read_text(encoding="utf-8").splitlines()[1:]
    return {line.partition(",")[2] for line in lines}


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def next_number(folder: Path) -> str:
    """Return the name after the last of the numbered folders in ``folder``, such as 03."""
    numbered = _numbered(folder)
    return f"{int(numbered[-1].name) + 1 if numbered else 1:02d}"


def _replace(path: Path, text: str) -> None:
    """Write a file that follows from others where it has changed, or remove it if it would be empty."""
    if not text:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path, "w") as file:
            file.write(text)
