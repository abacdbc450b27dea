"""Render small street scenes in five domains, in the on-disk formats of the five real data sets.

    python -m datasets.render --root datasets/rendered                # all five, 160 train and 40 val frames each
    python -m datasets.render --root DIR --data-sets cityscapes bdd100k --train 24 --val 8
    export DETECTRON2_DATASETS=DIR

The images depend only on seed, data set, split, frame number and size. A folder that was rendered with the same options
is left alone; a folder that was not rendered is never changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import run
from tmt_d2.projects.street_scenes.domains import DOMAINS


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--root", type=Path, required=True, metavar="DIR", help="output folder, such as $DETECTRON2_DATASETS")
    add("--data-sets", nargs="+", default=list(DOMAINS), choices=list(DOMAINS), metavar="NAME", help="default: all")
    add("--train", type=int, default=160, metavar="N", help="frames of each train split (default: %(default)s)")
    add("--val", type=int, default=40, metavar="N", help="frames of each val split (default: %(default)s)")
    add("--size", type=_size, default=(128, 256), metavar="HxW", help="height x width in pixels (default: 128x256)")
    add("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    add("--workers", type=int, metavar="N", help="number of processes (default: one per CPU core)")
    add("--overwrite", action="store_true", help="replace folders that were rendered with other options")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    from tmt_d2.projects.street_scenes.render import render

    for done in render(**options):
        status = f"{done.frames} frames" if done.new else "already rendered, nothing to do"
        print(f"{done.folder}: {status}")
    return 0


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
