"""Show what a model predicts, how transferable it finds the image, and what its queries attend to.

    python demo/visualize_attention.py --config-file configs/lite0/tmt.yaml --input street.png --output pictures \\
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
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tmt_d2.cli.common import parse, run
from tmt_d2.config import setup_cfg
from tmt_d2.data import register_data
from tmt_d2.data.datasets.registration import check_registered
from tmt_d2.errors import UserError
from tmt_d2.inference.reporting import LoadedModel, by_name, find_records, report_image, split_statistics
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils.files import write_json
from tmt_d2.utils.logs import log_to_screen
from tmt_d2.visualization.exclusion import statistics_figure, table
from tmt_d2.visualization.figures import report_figures
from tmt_d2.visualization.inspection import AttentionReport, Selector
from tmt_d2.visualization.panels import save

DEFAULT_TOP = 3


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(), arguments)
    log_to_screen()
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.WARNING)
    if not (args.input or args.statistics):
        raise UserError("nothing to show: give --input, --statistics, or both")
    register_data(setup_cfg(args.config_file, args.opts), missing_ok=True)  # a split of custom data may be named
    records = records_to_show(args.input, args.limit) if args.input else {}
    if args.statistics:
        check_registered(args.statistics, "--statistics")
    models = [LoadedModel.load(args.config_file, args.weights, args.opts)]
    if args.compare:
        models.append(LoadedModel.load(*args.compare))
        if models[0].name == models[1].name:
            for loaded in models:
                loaded.name = f"{Path(loaded.weights).parent.name}/{Path(loaded.weights).stem}"
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file, not a folder")
    output.mkdir(parents=True, exist_ok=True)
    selectors: list[Selector] = [*args.queries, *args.classes, *((x, y) for x, y in args.pixel)]
    selectors = list(dict.fromkeys(selectors))
    top = args.top if selectors or args.top else DEFAULT_TOP
    for number, (name, record) in enumerate(records.items(), 1):
        reports = [report_image(models[0], record, selectors, top, args.layers)]
        for other in models[1:]:  # the same queries or pixels; by confidence, the best query of the same class
            same = [query.choice.selector for query in reports[0].queries]
            reports.append(report_image(other, record, same, 0, args.layers))
        written = []
        for suffix, figure in report_figures(reports, name, args.heads):
            file = output / f"{name}_{suffix}.{args.format}"
            save(figure, file)
            written.append(file.name)
        if args.json:
            file = output / f"{name}.json"
            write_json(file, _numbers(record, models, reports))
            written.append(file.name)
        print(f"[{number}/{len(records)}] {record['file_name']}: {', '.join(written)}")
    if args.statistics:
        for loaded in models:
            suffix = f"_{loaded.name.replace('/', '-')}" if len(models) > 1 else ""
            show_statistics(
                loaded, args.statistics, args.limit, output / f"statistics_{args.statistics}{suffix}.{args.format}"
            )
    print(f"written to {output}")


def records_to_show(place: str, limit: int | None) -> dict[str, dict[str, Any]]:
    records, others = find_records(place)
    if others:
        print(f"{place}: {len(records)} images, {others} other files left out")
    return by_name(records[:limit])


def show_statistics(loaded: LoadedModel, split: str, limit: int | None, plot: Path) -> None:
    """Over a registered split: a table on stdout, a plot, and a JSON file beside it."""
    if not isinstance(loaded.model, TransferableMaskFormer):
        print(f"{loaded.name}: no statistics, a plain Mask2Former has no transferability")
        return
    result = split_statistics(loaded, split, limit)
    print(f"{split}, {loaded.name}, {result['images']} images\n{table(result)}")
    write_json(plot.with_suffix(".json"), result)
    save(statistics_figure(result, f"What transferability excludes: {split}, {result['images']} images"), plot)


def _numbers(
    record: dict[str, Any], models: Sequence[LoadedModel], reports: Sequence[AttentionReport]
) -> dict[str, Any]:
    return {
        "image": record["file_name"],
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


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
