"""Show the prediction of a model, the transferability of the image, and the attention of the queries.

    python demo/visualize_attention.py --config-file configs/models/lite0.yaml --method tmt \\
        --input street.png --output figures --weights output/lite0/tmt/model_final.pth --classes car person --json

For each image NAME (its path below the common folder of all images) the output folder receives

    NAME_prediction.png         image and prediction; for a registered split also ground truth and errors
    NAME_transferability.png    per level: T on a fixed scale, T by rank, excluded positions, the regions of ACTE
    NAME_query07_car_*.png      per decoder layer: predicted mask, mask AND transferability, attention; * is how the
                                query was selected: class, pixel-X-Y, rank-1, or nothing for a number
    NAME.json                   with --json: the numbers of the figures

and with --statistics SPLIT, over all images of a registered split: which classes transferability excludes, and how
often it leaves a query without positions, as a table, statistics_SPLIT.json and statistics_SPLIT.png.

T masks attention as in training, also for the prediction that is shown; ``MODEL.TMT.TEST_ATTENTION False`` shows the
model as it predicts by default. Existing files of these names are overwritten. Plain Mask2Former models (MaskFormer)
have no transferability figures.
Levels, layers, heads and queries are numbered from 0, as in the state dict.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tmt_d2.cli.common import (
    add_config_arguments,
    check_config,
    check_file,
    check_output_folder,
    check_place,
    parse,
    run,
)
from tmt_d2.errors import UserError
from tmt_d2.utils.files import write_json

if TYPE_CHECKING:
    from tmt_d2.inference.images import InputImages
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.visualization.inspection import Selector

DEFAULT_TOP = 3


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(), arguments)
    if not (args.input or args.statistics):
        raise UserError("nothing to show", hint="give --input, --statistics, or both")
    check_output_folder(args.output, args.input or "", "--input")
    if args.input:
        check_place("--input", args.input)
    check_file("--weights", args.weights)
    check_config(args.config_file, args.opts, args.method)
    if args.compare:
        check_config(args.compare[0])
        check_file("--compare", args.compare[1])
    from tmt_d2.config import setup_cfg
    from tmt_d2.data import register_data
    from tmt_d2.data.datasets.registration import check_registered
    from tmt_d2.inference.images import find_images
    from tmt_d2.inference.predictor import AS_IN_TRAINING, Predictor
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.WARNING)
    cfg = setup_cfg(args.config_file, args.opts, args.method)
    register_data(cfg, missing_ok=True)  # for splits of custom data
    images = find_images(args.input) if args.input else None
    if args.statistics:
        check_registered(args.statistics, "--statistics")
    predictors = [Predictor.from_config(args.config_file, args.weights, [*AS_IN_TRAINING, *args.opts], args.method)]
    if args.compare:
        config_file, weights = args.compare
        predictors.append(Predictor.from_config(config_file, weights, AS_IN_TRAINING))
        if predictors[0].name == predictors[1].name:
            for predictor in predictors:
                weights = Path(predictor.cfg.MODEL.WEIGHTS)
                predictor.name = f"{weights.parent.name}/{weights.stem}"
    args.output.mkdir(parents=True, exist_ok=True)
    if images is not None:
        show_images(predictors, images, args)
    if args.statistics:
        for predictor in predictors:
            suffix = f"_{predictor.name.replace('/', '-')}" if len(predictors) > 1 else ""
            file = args.output / f"statistics_{args.statistics}{suffix}.{args.format}"
            show_statistics(predictor, args.statistics, args.limit, file)
    print(f"written to {args.output}")


def show_images(predictors: Sequence[Predictor], images: InputImages, args: argparse.Namespace) -> None:
    """Write the figures, and with --json the numbers, of each image."""
    from tmt_d2.inference.attention import report_image
    from tmt_d2.visualization.figures import report_figures
    from tmt_d2.visualization.panels import save

    first, others = predictors[0], predictors[1:]
    if images.left_out:
        print(f"{images.place}: {len(images)} images, {images.left_out} other files left out")
    selectors: list[Selector] = [*args.queries, *args.classes, *((x, y) for x, y in args.pixel)]
    selectors = list(dict.fromkeys(selectors))
    top = args.top if selectors or args.top else DEFAULT_TOP
    for image in islice(images, args.limit):
        reports = [report_image(first, image, selectors, top, args.layers)]
        # The same queries or pixels; for a query chosen by confidence, the best query of the same class.
        same = [query.selected.selector for query in reports[0].queries]
        reports += [report_image(other, image, same, 0, args.layers) for other in others]
        (args.output / image.name).parent.mkdir(parents=True, exist_ok=True)
        written = []
        for suffix, figure in report_figures(reports, image.name, args.heads):
            written.append(f"{image.name}_{suffix}.{args.format}")
            save(figure, args.output / written[-1])
        if args.json:
            models = [
                {"weights": predictor.cfg.MODEL.WEIGHTS, **report.numbers()}
                for predictor, report in zip(predictors, reports)
            ]
            numbers = {"image": image.record["file_name"], "size": list(reports[0].image.shape[:2]), "models": models}
            written.append(f"{image.name}.json")
            write_json(args.output / written[-1], numbers)
        print(f"{image.name}: {', '.join(written)}")


def show_statistics(predictor: Predictor, split: str, limit: int | None, file: Path) -> None:
    """Print the statistics of a registered split as a table; write a plot, and a JSON file beside it."""
    from tmt_d2.inference.attention import split_statistics
    from tmt_d2.modeling.tmt import TransferableMaskFormer
    from tmt_d2.visualization.exclusion import statistics_figure, table
    from tmt_d2.visualization.panels import save

    if not isinstance(predictor.model, TransferableMaskFormer):
        print(f"{predictor.name}: no statistics, a plain Mask2Former has no transferability")
        return
    result = split_statistics(predictor, split, limit)
    print(f"{split}, {predictor.name}, {result['images']} images\n{table(result)}")
    write_json(file.with_suffix(".json"), result)
    save(statistics_figure(result, f"Positions excluded by T: {split}, {result['images']} images"), file)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add_config_arguments(arguments)
    add("--weights", default="", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS")
    add("--input", metavar="PLACE", help="a folder, a list, a registered split, a video, or an image")
    add("--output", required=True, type=Path, metavar="FOLDER", help="created if it does not exist")
    add("--limit", type=_positive, metavar="N", help="only the first N images")
    add("--queries", type=int, nargs="+", default=[], metavar="Q", help="queries by number")
    add("--classes", nargs="+", default=[], metavar="CLASS", help='the most confident query of each, "traffic light"')
    add("--top", type=int, default=0, metavar="K", help="the K most confident queries; default: 3 if none is selected")
    add("--pixel", type=int, nargs=2, action="append", default=[], metavar=("X", "Y"), help="the query that owns it")
    add("--layers", type=int, nargs="+", metavar="L", help="decoder layers; default: the last three, one per level")
    add("--heads", type=int, nargs="+", default=[], metavar="H", help="attention heads to show beside their mean")
    add("--format", choices=("png", "pdf"), default="png", help="default: %(default)s")
    add("--json", action="store_true", help="write the numbers of the figures")
    add("--compare", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="a second model to show beside the first")
    add("--statistics", metavar="SPLIT", help="classes excluded by T, over a registered split")
    return arguments


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} should be a whole number from 1")
    return int(text)


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
