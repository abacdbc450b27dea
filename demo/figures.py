#!/usr/bin/env python
"""Figures of README and docs, from a finished `make demo`.

    python -m demo.figures --demo output/demo --output docs

writes into --output, each below 300 kB:

    transferability.jpg   per level of one target image: T by rank, the positions excluded by p_T, the regions of ACTE
    attention.jpg         one query in the last decoder layer: its mask, the positions excluded by T, attention with
                          and without TMT
    statistics.jpg        the classes excluded by T, over the target's validation split

The image and the query are chosen from the whole split: a bright image, and a large mask of which T excludes about half
in the last layer.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.run import TARGET, fine_tuned
from demo.showcase import attention, most_interesting, save_jpeg, transferability
from tmt_d2.data.datasets.registration import split_name
from tmt_d2.errors import one_line_errors
from tmt_d2.inference.attention import report_image, split_statistics
from tmt_d2.inference.images import find_images
from tmt_d2.inference.predictor import AS_IN_TRAINING, Predictor
from tmt_d2.visualization.exclusion import statistics_figure

SPLIT = split_name(TARGET, "val")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    folders = fine_tuned(args.demo)
    for folder in folders.values():
        if not (folder / "model_final.pth").is_file():
            raise FileNotFoundError(f"--demo {args.demo}: no {folder}/model_final.pth: run `make demo` first")
    os.environ["DETECTRON2_DATASETS"] = str(args.demo / "data")
    files = [(folders[name] / "config.yaml", folders[name] / "model_final.pth") for name in ("tmt", "full")]
    files = [(folders[name] / "config.yaml", folders[name] / "model_final.pth") for name in ("tmt", "full")]
    tmt, full = (Predictor.from_config(str(config), str(weights), AS_IN_TRAINING) for config, weights in files)
    args.output.mkdir(parents=True, exist_ok=True)
    image, report = most_interesting(tmt, find_images(SPLIT))
    query = report.queries[0]
    print(f"{image.record['file_name']}: query {query.selected.query}, {query.name}")
    print(save_jpeg(transferability(report), args.output / "transferability.jpg"))
    print(save_jpeg(attention(report, report_image(full, image, [query.name])), args.output / "attention.jpg"))
    result = split_statistics(tmt, SPLIT)
    heading = f"Positions excluded by T in {result['images']} target images"
    print(save_jpeg(statistics_figure(result, heading), args.output / "statistics.jpg"))


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add(
        "--demo",
        type=Path,
        default=Path("output/demo"),
        metavar="FOLDER",
        help="folder of a finished demo; default: %(default)s",
    )
    add("--output", type=Path, default=Path("docs"), metavar="FOLDER", help="default: %(default)s")
    return arguments


if __name__ == "__main__":
    with one_line_errors():
        main()
    sys.exit(0)
