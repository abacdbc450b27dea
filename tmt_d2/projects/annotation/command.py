"""Import labels that an annotation tool exported.

    python tools/import_labels.py --export export.zip --images photos \\
        --classes predicted/classes.json --output mycity

Files in --output:

    labels/NAME.png    class ids of each labeled image, NAME is its path below --images; 255: no label
    classes.json       the ids: {"classes": [{"id": 0, "name": "road", "color": [...]}]}
    dataset.yaml       a data set for training: images with these labels, all others without a label
    labeled.txt        the labeled images, of this import and earlier ones: TRANSFER.LABEL_LIST

--export is a zip archive, an unpacked folder or a JSON file in one of these formats:

    CVAT                 "Segmentation mask 1.1", "COCO 1.0", "Cityscapes 1.0"
    Label Studio         "JSON" (brush masks and polygons), "COCO" (polygons)
    tools/predict.py     classes.json with labels/*.png

Labels are matched with classes by name; case does not matter. A label that is no class is an error: map it with
--map street=road void=ignore. Pixels without a label become 255, unless --map background=CLASS. Of overlapping
annotations the upper one counts, or the later one.

Images are matched by path, then by file name, by stem, and by names that the tools make of them. What is written, left
out and missing is printed, one line each. A label file that exists is never changed without --replace. An export that
is damaged, of another project or of other classes is an error, and nothing is written.

Exit status: 0 all labels imported; 1 some left out; 2 an error, in one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import check_output_folder, run
from tmt_d2.errors import UserError


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--export", required=True, metavar="PLACE", help="what the tool exported")
    add("--images", required=True, metavar="FOLDER", help="the images, searched with its subfolders")
    classes = "classes.json of tools/predict.py, the YAML file of a data set, or a registered data set"
    add("--classes", required=True, metavar="PLACE", help=classes)
    add("--output", required=True, type=Path, metavar="FOLDER", help="created if it does not exist")
    add("--map", nargs="+", default=[], metavar="LABEL=CLASS", help="class, or ignore, of a label with another name")
    add("--replace", action="store_true", help="replace label files that differ from the export")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if not Path(args.images).is_dir():
        raise UserError("is no folder", key="--images", value=args.images)
    if not Path(args.export).exists():
        raise FileNotFoundError(f"--export {args.export} does not exist")
    check_output_folder(args.output, args.images, "--images")
    from tmt_d2.data.datasets.custom import read_custom
    from tmt_d2.data.datasets.registration import split_name
    from tmt_d2.projects.annotation.importing import DATA_SET, LIST, images_below, import_labels
    from tmt_d2.projects.annotation.labels import read_classes, read_mapping
    from tmt_d2.utils.files import remove_temporaries
    from tmt_d2.utils.lock import folder_lock
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    classes, mapping, images = read_classes(args.classes), read_mapping(args.map), images_below(args.images)
    is_new = not args.output.exists()
    try:
        with folder_lock(args.output, "--output"):
            remove_temporaries(args.output)
            report = import_labels(args.export, images, classes, args.output, mapping=mapping, replace=args.replace)
    finally:
        if is_new:
            with suppress(OSError):  # something was written
                args.output.rmdir()
    print("\n".join(report.lines()))
    data_set = read_custom(args.output / DATA_SET)
    splits = [split_name(data_set.name, split) for split, content in data_set.splits.items()]
    print(f"\nwritten: {args.output}; train with DATASETS.CUSTOM {args.output / DATA_SET}")
    train = splits[0] if len(splits) == 1 else f'"{tuple(splits)}"'
    print(f"    DATASETS.TRAIN {train} TRANSFER.LABEL_LIST {args.output / LIST}")
    return 0 if report.is_complete else 1


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
