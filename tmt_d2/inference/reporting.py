"""From files to reports: a trained model, the images of a folder or split, and what the model saw in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from tqdm import tqdm

from tmt_d2.config import setup_cfg
from tmt_d2.data.datasets.label_spaces import LabelSpace, class_list_of
from tmt_d2.data.datasets.registration import check_registered, label_space_of, labeled_records, records_of
from tmt_d2.data.image_files import image_files
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import read_image_of, read_label, read_pair
from tmt_d2.errors import UserError, did_you_mean
from tmt_d2.inference import load_model
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.utils.files import read_json
from tmt_d2.visualization.exclusion import collect
from tmt_d2.visualization.inspection import AttentionReport, Selector, attention_report
from tmt_d2.visualization.sizes import Size, resized, size_within


@dataclass
class LoadedModel:
    """A model with what it needs to read an image."""

    name: str
    config_file: str
    weights: str
    model: MaskFormer
    mapper: SemanticMapper

    @classmethod
    def load(cls, config_file: str, weights: str, opts: Sequence[str] = ()) -> LoadedModel:
        """Named by its method or stage.

        Raises:
            FileNotFoundError, UserError: config or checkpoint cannot be used; one line.
        """
        cfg, model = load_model(config_file, weights, opts)
        name = cfg.TRANSFER.METHOD if cfg.TRANSFER.STAGE == "finetune" else cfg.TRANSFER.STAGE
        return cls(name, config_file, cfg.MODEL.WEIGHTS, model, SemanticMapper(cfg, is_train=False))


def find_records(place: str) -> tuple[list[dict[str, Any]], int]:
    """The images of a registered split, a folder, or one file; how many other files the folder has.

    Raises:
        FileNotFoundError: it is none of these. UserError: a folder without images.
    """
    path = Path(place)
    if place in DatasetCatalog.list():
        return records_of([place]), 0
    if path.is_file():
        return [{"file_name": place}], 0
    if not path.is_dir():
        nearest = did_you_mean(place, DatasetCatalog.list())
        raise FileNotFoundError(f"--input {place}: no such image, folder or registered split{nearest}")
    images, left_out = image_files(path, recursive=False)
    return [{"file_name": str(file)} for file in images], left_out


def by_name(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the stem of their files; by folder and whole name where others have that stem.

    Raises:
        UserError: two images would still share a name.
    """
    files = [Path(record["file_name"]) for record in records]
    stems = Counter(file.stem for file in files)
    names = [file.stem if stems[file.stem] == 1 else f"{file.parent.name}_{file.name}" for file in files]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{count} images would have the name {name} for their pictures: show them one by one")
    return dict(zip(names, records))


def report_image(
    loaded: LoadedModel,
    record: dict[str, Any],
    selectors: Sequence[Selector],
    top: int = 0,
    layers: Sequence[int] | None = None,
) -> AttentionReport:
    """One image through one model, at the size of the file or smaller; see ``attention_report``."""
    truth = None
    if LABEL in record:
        picture, truth = read_pair(record, label_space_for(loaded.model, record["dataset"]))
    else:
        picture = read_image_of(record)
    whole: Size = (picture.shape[0], picture.shape[1])
    size = size_within(whole)
    return attention_report(
        loaded.model,
        loaded.mapper(record),
        resized(picture, size),
        selectors=[scaled(selector, whole, size) for selector in selectors],
        top=top,
        layers=layers,
        truth=None if truth is None else resized(truth, size),
        name=loaded.name,
    )


def label_space_for(model: MaskFormer, split: str) -> LabelSpace:
    """That of a registered split.

    Raises:
        UserError: the model has other classes: its predictions cannot be held against these labels.
    """
    space = label_space_of(split)
    if space.classes.names != class_list_of(model).names:
        raise UserError(
            f"{split} has {space.classes}, the model has {class_list_of(model)}: name a split with its classes"
        )
    return space


def scaled(selector: Selector, whole: Size, shown: Size) -> Selector:
    """A pixel of the file as one of the picture that is shown."""
    if not isinstance(selector, tuple) or whole == shown:
        return selector
    return selector[0] * shown[1] // whole[1], selector[1] * shown[0] // whole[0]


def split_statistics(loaded: LoadedModel, split: str, limit: int | None = None) -> dict[str, Any]:
    """``Statistics.result`` of a registered split, with where it comes from and the measured proxy A-distance."""
    check_registered(split, "--statistics")
    label_space = label_space_for(loaded.model, split)
    records = tqdm(labeled_records([split])[:limit], desc=split, unit="image")
    items = ((loaded.mapper(record), read_label(record["sem_seg_file_name"], label_space)) for record in records)
    origin = {"split": split, "config_file": loaded.config_file, "weights": loaded.weights}
    result = origin | collect(loaded.model, items)
    folder = Path(loaded.weights).parent
    folders = [folder]
    if (folder / "config.yaml").is_file():  # fine-tuned: it says from which estimator
        folders.append(Path(setup_cfg(str(folder / "config.yaml")).MODEL.WEIGHTS).parent)
    for estimator in (each / "estimator.json" for each in folders):
        if estimator.is_file():
            result["proxy_a_distance"] = read_json(estimator, ["proxy_a_distance"])["proxy_a_distance"]
            break
    return result
