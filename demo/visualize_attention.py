#!/usr/bin/env python
"""Show what a model predicts, how transferable it finds the image, and what its queries attend to.

    python demo/visualize_attention.py --config-file configs/tiny/tmt.yaml --input street.png --output pictures \\
        --weights output/tiny/tmt/model_final.pth --classes car person --json

For each image NAME.* the output folder receives

    NAME_prediction.png         image and prediction; for a registered split also ground truth and errors
    NAME_transferability.png    per level: T on a fixed scale, T by rank, what is excluded, the regions of ACTE
    NAME_query07_car_*.png      per decoder layer: predicted mask, mask AND transferability, attention; * says how the
                                query was chosen: class, pixel-X-Y, rank-1, or nothing where by number
    NAME.json                   with --json: the numbers behind the pictures

and with --statistics SPLIT, over all images of a registered split: which classes transferability excludes, and how
often it leaves a query with nothing, as a table, statistics_SPLIT.json and statistics_SPLIT.png.

Files of these names are overwritten, other files in the folder are left alone. Plain Mask2Former models (MaskFormer)
have no transferability pictures. Levels, layers, heads and queries are numbered from 0, as in the state dict.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tmt_d2  # noqa: F401  first, because it silences the warnings of Detectron2's import

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from matplotlib.figure import Figure
from tqdm import tqdm

from tmt_d2.data import register_custom
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import read_image_of, read_label, read_pair
from tmt_d2.data.registration import label_space_of
from tmt_d2.deployment import load_model
from tmt_d2.engine.cli import one_line_errors
from tmt_d2.files import write_json
from tmt_d2.modeling.mask_former import MaskFormer, TransferableMaskFormer
from tmt_d2.visualization import (
    AttentionReport,
    Wanted,
    attention_report,
    collect,
    prediction_figure,
    query_figure,
    save,
    statistics_figure,
    table,
    transferability_figure,
)
from tmt_d2.visualization.overlays import resized

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
CONFIG_KEY = re.compile(r"(DATALOADER|DATASETS|INPUT|MODEL|TEST|TRANSFER)\.[A-Z0-9_.]+")
DEFAULT_TOP = 3
LONGEST = 2048  # larger images are shown, and segmented, at this length of the longer side


@dataclass
class Loaded:
    """A model with what it needs to read an image."""

    name: str
    config_file: str
    weights: str
    model: MaskFormer
    mapper: SemanticMapper

    @property
    def file_name(self) -> str:
        return self.name.replace("/", "-")


@dataclass
class Picture:
    """An image to show: ``name`` is that of its files."""

    name: str
    record: dict[str, Any]


def load(config_file: str, weights: str, opts: Sequence[str] = ()) -> Loaded:
    """Build a model and load its checkpoint.

    Raises:
        FileNotFoundError, ValueError: config or checkpoint cannot be used; one line.
    """
    cfg, model = load_model(config_file, weights, opts)
    for path in cfg.DATASETS.CUSTOM:
        register_custom(path)
    return Loaded(_name(cfg, config_file), config_file, cfg.MODEL.WEIGHTS, model, SemanticMapper(cfg, is_train=False))


def _name(cfg: CfgNode, config_file: str) -> str:
    return cfg.TRANSFER.METHOD if cfg.TRANSFER.STAGE == "finetune" else cfg.TRANSFER.STAGE


def find_pictures(given: str, limit: int | None) -> list[Picture]:
    """The images of a registered split, a folder, or one file.

    Raises:
        ValueError: it is none of these, or a folder without images.
    """
    path = Path(given)
    if given in DatasetCatalog.list():
        records = list(DatasetCatalog.get(given))
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        images = [file for file in files if file.suffix.lower() in IMAGES]
        if not images:
            raise ValueError(f"{given}: this folder has no image ({', '.join(sorted(IMAGES))})")
        if len(images) < len(files):
            print(f"{given}: {len(images)} images, {len(files) - len(images)} other files left out")
        records = [{"file_name": str(file)} for file in images]
    elif path.is_file():
        records = [{"file_name": given}]
    else:
        raise FileNotFoundError(f"--input {given}: no such image, folder or registered split")
    if limit is not None:
        records = records[:limit]
    stems = Counter(Path(record["file_name"]).stem for record in records)
    pictures = []
    for record in records:
        file = Path(record["file_name"])
        # Two images that differ in folder or suffix only must not share their files.
        name = file.stem if stems[file.stem] == 1 else f"{file.parent.name}_{file.name}"
        pictures.append(Picture(name, record))
    if len({picture.name for picture in pictures}) < len(pictures):
        raise ValueError(f"{given}: some images differ in their folders only, and their pictures would share a name")
    return pictures


def report_image(
    loaded: Loaded, record: dict[str, Any], wanted: Sequence[Wanted], top: int, layers: Sequence[int] | None
) -> AttentionReport:
    """One image through one model, at the size of the file or smaller."""
    if "sem_seg_file_name" in record:
        picture, label = read_pair(record, label_space_of(record["dataset"]))
        size = shown_size(picture.shape[:2])
        truth = resized(label, size)
    else:
        picture, truth = read_image_of(record), None
        size = shown_size(picture.shape[:2])
    return attention_report(
        loaded.model,
        loaded.mapper(record),
        resized(picture, size),
        wanted=[_scaled(item, picture.shape[:2], size) for item in wanted],
        top=top,
        layers=layers,
        truth=truth,
        name=loaded.name,
    )


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """``size`` itself, or its like with LONGEST as the longer side."""
    scale = min(1.0, LONGEST / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _scaled(item: Wanted, size: tuple[int, int], shown: tuple[int, int]) -> Wanted:
    """A pixel of the file as one of the picture that is shown."""
    if not isinstance(item, tuple) or size == shown:
        return item
    return item[0] * shown[1] // size[1], item[1] * shown[0] // size[0]


def figures(reports: Sequence[AttentionReport], name: str, heads: Sequence[int]) -> Iterator[tuple[str, Figure]]:
    """(what follows the image's name in the file name, figure)"""
    yield "prediction", prediction_figure(reports, name)
    for report in reports:
        if report.levels:
            suffix = "transferability" if len(reports) == 1 else f"transferability_{report.name.replace('/', '-')}"
            yield suffix, transferability_figure(report, f"{name}: transferability ({report.name})")
    for queries in zip(*(report.queries for report in reports)):
        query, reason = queries[0].choice.query, queries[0].choice.reason
        heading = f"{name}: {queries[0].name}, query {query} (chosen by {reason})"
        file = f"query{query:02d}_{queries[0].name}" + ("" if reason == "number" else f"_{reason}")
        yield file.replace(" ", "-"), query_figure(reports, queries, heading, heads)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.WARNING)
    if not (args.input or args.statistics):
        raise ValueError("nothing to show: give --input, --statistics, or both")
    models = [load(args.config_file, args.weights, args.opts)]
    if args.compare:
        models.append(load(*args.compare))
        if models[0].name == models[1].name:
            for loaded in models:
                loaded.name = f"{Path(loaded.weights).parent.name}/{Path(loaded.weights).stem}"
    pictures = find_pictures(args.input, args.limit) if args.input else []
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file, not a folder")
    output.mkdir(parents=True, exist_ok=True)
    wanted: list[Wanted] = [*args.queries, *args.classes, *((x, y) for x, y in args.pixel)]
    wanted = list(dict.fromkeys(wanted))
    top = args.top if wanted or args.top else DEFAULT_TOP
    for number, picture in enumerate(pictures, 1):
        reports = [report_image(models[0], picture.record, wanted, top, args.layers)]
        for other in models[1:]:  # the same queries or pixels; by confidence, the best query of the same class
            same = [item.choice.wanted for item in reports[0].queries]
            reports.append(report_image(other, picture.record, same, 0, args.layers))
        written = []
        for suffix, figure in figures(reports, picture.name, args.heads):
            file = output / f"{picture.name}_{suffix}.{args.format}"
            save(figure, file)
            written.append(file.name)
        if args.json:
            file = output / f"{picture.name}.json"
            write_json(file, _numbers(picture, models, reports))
            written.append(file.name)
        print(f"[{number}/{len(pictures)}] {picture.record['file_name']}: {', '.join(written)}")
    if args.statistics:
        for loaded in models:
            name = f"statistics_{args.statistics}" + (f"_{loaded.file_name}" if len(models) > 1 else "")
            whole_split(loaded, args.statistics, args.limit, output / f"{name}.{args.format}")
    print(f"written to {output}")


def whole_split(loaded: Loaded, split: str, limit: int | None, plot: Path) -> None:
    """Statistics over a registered split: a table on stdout, a plot, and a JSON file beside it."""
    if not isinstance(loaded.model, TransferableMaskFormer):
        print(f"{loaded.name}: no statistics, a plain Mask2Former has no transferability")
        return
    result = statistics_of(loaded, split, limit)
    print(f"{split}, {loaded.name}, {result['images']} images\n{table(result)}")
    write_json(plot.with_suffix(".json"), result)
    heading = f"What transferability excludes: {split}, {result['images']} images"
    save(statistics_figure(result, heading), plot)


def statistics_of(loaded: Loaded, split: str, limit: int | None) -> dict[str, Any]:
    """``Statistics.result`` of a registered split, with where it comes from and the measured proxy A-distance."""
    label_space = label_space_of(split)
    records = DatasetCatalog.get(split)[:limit]
    items = (
        (loaded.mapper(record), read_label(record["sem_seg_file_name"], label_space))
        for record in tqdm(records, desc=split, unit="image")
    )
    result = {
        "split": split,
        "config_file": loaded.config_file,
        "weights": loaded.weights,
        **collect(loaded.model, items),
    }
    folder = Path(loaded.weights).parent
    for estimator in (folder / "estimator.json", folder.parent / "estimator" / "estimator.json"):
        if estimator.is_file():
            result["proxy_a_distance"] = json.loads(estimator.read_text(encoding="utf-8"))["proxy_a_distance"]
            break
    return result


def _numbers(picture: Picture, models: Sequence[Loaded], reports: Sequence[AttentionReport]) -> dict[str, Any]:
    return {
        "image": picture.record["file_name"],
        "size": list(reports[0].picture.shape[:2]),
        "models": [
            {"config_file": loaded.config_file, "weights": loaded.weights, **report.numbers()}
            for loaded, report in zip(models, reports)
        ],
    }


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} should be a whole number from 1")
    return int(text)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Overrides begin at the first config key, also behind an option of several values (--heads 0 2 MODEL.X ...)."""
    start = next((i for i, argument in enumerate(arguments) if CONFIG_KEY.fullmatch(argument)), len(arguments))
    args = parser().parse_args(arguments[:start])
    args.opts += arguments[start:]
    return args


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", default="", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS")
    add("--input", help="an image, a folder of images, or a registered split")
    add("--output", required=True, metavar="FOLDER", help="created if it does not exist")
    add("--limit", type=_positive, metavar="N", help="only the first N images")
    add("--queries", type=int, nargs="+", default=[], metavar="Q", help="queries by number")
    add("--classes", nargs="+", default=[], metavar="CLASS", help='the most confident query of each, "traffic light"')
    add("--top", type=int, default=0, metavar="K", help="the K most confident queries; 3 where none is chosen")
    add("--pixel", type=int, nargs=2, action="append", default=[], metavar=("X", "Y"), help="the query that owns it")
    add("--layers", type=int, nargs="+", metavar="L", help="decoder layers; default: the last three, one per level")
    add("--heads", type=int, nargs="+", default=[], metavar="H", help="attention heads to show beside their mean")
    add("--format", choices=("png", "pdf"), default="png")
    add("--json", action="store_true", help="write the numbers behind the pictures")
    add("--compare", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="a second model to show beside the first")
    add("--statistics", metavar="SPLIT", help="which classes T excludes, over a registered split")
    add("opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides for the first model")
    return arguments


if __name__ == "__main__":
    with one_line_errors():
        main()
    sys.exit(0)
