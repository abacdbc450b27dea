"""Check the files of data sets: counts, pairs, broken files, label ids. Nothing is written below the root.

    python -m datasets.check                            # all data sets below $DETECTRON2_DATASETS (default: datasets)
    python -m datasets.check --quick                    # names and counts, and 20 images of every split
    python -m datasets.check --root /data --data-sets cityscapes gtav
    python -m datasets.check --data-sets my_city.yaml   # a custom data set (see tmt_d2/data/datasets/custom.py)
    python -m datasets.check --subsets                  # images or labels are missing on purpose

Problems are: fewer images than the full data set has, images without labels and labels without images, files that are
empty, truncated or damaged, label ids that the data set does not define (such as labels of Mapillary Vistas v2.0),
labels of another size than their image, and splits in which no pixel has a class. Images with an EXIF orientation are
a warning: they are read as stored, or turned where only the turned image has the size of its label.

Exit status: 0 no problem, 1 problems, 2 nothing found.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tabulate import tabulate

from tmt_d2.cli.common import run
from tmt_d2.data.datasets.names import FAMILIES, QUICK_SAMPLE, dataset_root
from tmt_d2.errors import UserError, did_you_mean
from tmt_d2.utils.files import check_writable, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tmt_d2.data.check import SplitFiles, SplitReport
    from tmt_d2.data.class_lists import RGB
    from tmt_d2.visualization.panels import PanelRow

SHOWN = 3  # messages printed per split and kind
SHEET_IMAGES, SHEET_SIDE = 4, 640  # images per split on the sheet, length of their longer side


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = parser().parse_args(arguments)
    check_arguments(args)
    from tmt_d2.data.check import check_split, splits_to_check
    from tmt_d2.data.datasets.registration import DATA_SETS

    names = args.data_sets or FAMILIES
    splits = [split for name in names for split in splits_to_check(name, args.root, args.subsets)]
    reports: dict[str, dict[str, SplitReport]] = {}  # by data set and split
    for split in splits:
        reports.setdefault(split.data_set, {})[split.name] = check_split(split, args.quick)
    absent = [name for name in names if name in FAMILIES and name not in reports]
    if args.json:
        content = {name: {split: each.to_json() for split, each in own.items()} for name, own in reports.items()}
        write_json(args.json, {"root": args.root, "data_sets": content, "not_found": absent})
    if not reports:
        folders = ", ".join(DATA_SETS[name].layout.folder for name in absent)
        print(
            f"nothing found: {args.root} has none of the folders {folders}; set DETECTRON2_DATASETS or --root, or "
            "render scenes with `python -m datasets.render`"
        )
        return 2
    _print_reports(reports)
    if args.sheet:
        from tmt_d2.visualization.panels import save

        save(contact_sheet(splits), args.sheet)
        print(f"{args.sheet}: images of every split under the colors of their labels")
    if absent:
        print(f"not in {args.root}: {', '.join(absent)}")
    has_problems = any(any(report.problems.values()) for own in reports.values() for report in own.values())
    return int(has_problems or bool(args.data_sets and absent))


def contact_sheet(splits: Sequence[SplitFiles]) -> Figure:
    """Draw images under the colors of their labels, with ignored pixels black; one row for each split with labels.

    Raises:
        UserError: no image with a label can be read.
    """
    from tmt_d2.data.datasets.label_spaces import IGNORE
    from tmt_d2.data.labeled import LABEL
    from tmt_d2.data.reader import DataError, read_pair
    from tmt_d2.visualization.overlays import label_overlay
    from tmt_d2.visualization.panels import Panel, PanelRow, draw
    from tmt_d2.visualization.sizes import shrink

    rows: list[PanelRow] = []
    legend: dict[tuple[str, RGB], None] = {}
    for split in splits:
        try:
            pairs = list(split.listing().pairs.values())
        except UserError:
            continue  # printed as a problem
        panels, count = [], min(SHEET_IMAGES, len(pairs))
        for image_path, label_path in (pairs[index * len(pairs) // count] for index in range(count)):
            try:
                image, label = read_pair({"file_name": image_path, LABEL: label_path}, split.label_space)
            except DataError:
                continue
            classes = split.label_space.classes
            legend |= dict.fromkeys(classes.legend(label[label != IGNORE]))
            overlay = label_overlay(shrink(image, SHEET_SIDE), label, classes, strength=0.6)
            panels.append(Panel(overlay, Path(image_path).stem[-30:]))
        if panels:
            rows.append(PanelRow(panels, f"{split.data_set} {split.name}"))
    if not rows:
        raise UserError("no image with a label can be read", key="--sheet")
    return draw(rows, "Images under the colors of their labels", list(legend))


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--root", default=dataset_root(), help="folder of the data sets (default: %(default)s)")
    add(
        "--data-sets",
        nargs="+",
        default=(),
        metavar="NAME",
        help=f"{', '.join(FAMILIES)}, or YAML files of custom data sets; default: all below the root",
    )
    add("--json", metavar="FILE", help="write the report with all messages into FILE")
    add("--sheet", metavar="FILE.png", help="draw images under the colors of their labels into FILE.png")
    add("--quick", action="store_true", help=f"read only {QUICK_SAMPLE} images of every split")
    add("--subsets", action="store_true", help="images or labels are missing on purpose")
    return arguments


def check_arguments(args: argparse.Namespace) -> None:
    for name in args.data_sets:
        if name not in FAMILIES and not name.endswith((".yaml", ".yml")):
            hint = f"choose of {', '.join(FAMILIES)}{did_you_mean(name, FAMILIES)}"
            raise UserError("no YAML file and no data set", key="--data-sets", value=name, hint=hint)
    if args.sheet and not args.sheet.endswith((".png", ".pdf")):
        raise UserError("must end with .png or .pdf", key="--sheet", value=args.sheet)
    for option, file in (("--json", args.json), ("--sheet", args.sheet)):
        if file:
            check_writable(option, file)


def _print_reports(reports: dict[str, dict[str, SplitReport]]) -> None:
    from tmt_d2.data.check import PROBLEMS

    splits = [(name, split, report) for name, own in reports.items() for split, report in own.items()]
    kinds = [kind for kind in PROBLEMS if any(report.problems[kind] for *_, report in splits)]
    rows = []
    for name, split, report in splits:
        expected = "-" if report.expected is None else report.expected
        problems = [len(report.problems[kind]) or "" for kind in kinds]
        by_area = sorted(report.sizes, key=lambda size: (size[0] * size[1], size))
        sizes = " to ".join(dict.fromkeys(f"{width}x{height}" for width, height in (*by_area[:1], *by_area[-1:])))
        rows.append(
            [name, split, report.images, expected, report.read, report.labeled, report.known_bad, *problems, sizes]
        )
    print(tabulate(rows, ["data set", "split", "images", "of", "read", "labeled", "known bad", *kinds, "sizes"]))
    for name, own in reports.items():
        columns = {split: report.percent_of_pixels() for split, report in own.items() if report.labels_read}
        if columns:
            space = next(iter(own.values())).label_space
            absent = {space.classes.names[index] for index in space.never_occurs}
            names = next(iter(columns.values()))
            table = [[each, *(shares[each] for shares in columns.values())] for each in names]
            print(f"\n{name}, percent of pixels:")
            print(
                tabulate([row for row in table if row[0] not in absent or any(row[1:])], ["", *columns], floatfmt=".2f")
            )
    for name, split, report in splits:
        for kind, messages in report.problems.items():
            for message in messages[:SHOWN]:
                print(f"{name} {split}, {PROBLEMS[kind]}: {message}")
            if len(messages) > SHOWN:
                print(f"{name} {split}, {PROBLEMS[kind]}: ... {len(messages)} in all (--json lists them)")
        for note in report.notes:
            print(f"{name} {split}: {note}")
        if report.oriented:
            print(
                f"{name} {split}, warning: {len(report.oriented)} of {report.read} images have an EXIF orientation, "
                f"e.g. {report.oriented[0]}: check that they fit their labels"
            )


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
