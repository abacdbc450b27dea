"""Renders small street scenes in five domains, in the on-disk formats of the five real data sets.

    python -m datasets.render --root DIR

The pictures stand in for the real data: the same registrations, configs and commands read them. They depend
only on the seed, the data set, the split and the frame's number.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
from PIL import Image

from tmt_d2.cli.common import run
from tmt_d2.data.datasets.label_spaces import IGNORE, PALETTE
from tmt_d2.errors import UserError
from tmt_d2.projects.street_scenes.appearance import film
from tmt_d2.projects.street_scenes.canvas import OVERSAMPLING, Camera, Canvas
from tmt_d2.projects.street_scenes.domains import DOMAINS
from tmt_d2.projects.street_scenes.formats import FORMATS, Frame
from tmt_d2.projects.street_scenes.objects import Painter
from tmt_d2.projects.street_scenes.scene import lay_out

MANIFEST = ".rendered.json"
VERSION = 1  # raise it when the same parameters give other pictures
_SMALLEST_SIDE = 16
_CHUNK = 8  # frames a worker takes at a time


class RenderError(UserError):
    """A request that cannot be met; the message is one line for the user."""


def render_frame(
    data_set: str, split: str, index: int, size: tuple[int, int] = (128, 256), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """-> image (H, W, 3) uint8 RGB and label (H, W) uint8 train ids (255 = ignore) of one frame.

    ``size`` is (height, width). Mapillary frames differ in size, around the one asked for.
    """
    domain = DOMAINS[data_set]
    rng = np.random.default_rng([seed, zlib.crc32(data_set.encode()), zlib.crc32(split.encode()), index])
    factors = domain.sizes[int(rng.integers(len(domain.sizes)))]
    height, width = (max(round(side * factor), _SMALLEST_SIDE) for side, factor in zip(size, factors))
    scene = lay_out(domain.street, rng)
    shares = np.array([light.share for light in domain.lights])
    light = domain.lights[int(rng.choice(len(shares), p=shares / shares.sum()))]

    tall, wide = height * OVERSAMPLING, width * OVERSAMPLING
    focal = scene.focal * (wide + 2 * tall) / 2  # of a 2:1 picture: its width
    camera = Camera((tall, wide), scene.camera_height, focal, scene.vanishing_x * wide, scene.horizon * tall)
    canvas = Canvas(camera)
    painter = Painter(canvas, scene, domain, light, rng)
    painter.street()
    for thing in scene.things:
        painter.thing(thing)
    if domain.bonnet:
        painter.bonnet()
    image, label, depth = canvas.finish()
    glow = [
        (x / OVERSAMPLING, y / OVERSAMPLING, radius / OVERSAMPLING, colour) for x, y, radius, colour in painter.glow
    ]
    return film(image, label, depth, glow, domain, light, rng), label


@dataclass(frozen=True)
class Rendered:
    """Attributes: data set; its folder; number of frames; False if the folder already held exactly this."""

    data_set: str
    folder: Path
    frames: int
    new: bool


def render(
    root: str | Path,
    data_sets: Sequence[str] = tuple(DOMAINS),
    train: int = 160,
    val: int = 40,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> list[Rendered]:
    """Write the data sets below ``root``; a folder that already holds exactly this is left as it is.

    ``size`` is (height, width). A data set appears under its name only when it is complete.

    Raises:
        RenderError: an unknown data set, a size or count that is too small, a folder that holds something else
            (rendered with other parameters and no ``overwrite``, or not rendered by this module at all).
    """
    unknown = [name for name in data_sets if name not in FORMATS]
    if unknown:
        raise RenderError(f"unknown data set {unknown[0]!r}; choose from {', '.join(FORMATS)}")
    if min(size) < _SMALLEST_SIDE:
        raise RenderError(f"size {size[0]}x{size[1]} is too small; both sides need at least {_SMALLEST_SIDE} pixels")
    if min(train, val) < 0 or train + val == 0:
        raise RenderError(f"{train} train and {val} val frames make no data set; give counts of 0 or more")
    if workers is not None and workers < 1:
        raise RenderError(f"workers is {workers}; give 1 or more")
    parameters = _Parameters(train, val, size, seed)
    folders = {name: Path(root) / FORMATS[name].folder for name in data_sets}
    done = {name: _is_done(folder, parameters, overwrite) for name, folder in folders.items()}  # refuse before any work
    for name, folder in folders.items():
        if not done[name]:
            _render_one(folder, name, parameters, workers or os.cpu_count() or 1)
    return [Rendered(name, folder, train + val, not done[name]) for name, folder in folders.items()]


@dataclass(frozen=True)
class _Parameters:
    train: int
    val: int
    size: tuple[int, int]
    seed: int
    version: int = VERSION

    def text(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def _is_done(folder: Path, parameters: _Parameters, overwrite: bool) -> bool:
    if not folder.exists():
        return False
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise RenderError(
            f"{folder} exists and was not rendered (it has no {MANIFEST}): it may be real data; choose another root"
        )
    if manifest.read_text() == parameters.text():
        return True
    if not overwrite:
        raise RenderError(
            f"{folder} was rendered with other parameters (see {MANIFEST} there); use --overwrite to replace it"
        )
    return False


def _render_one(folder: Path, name: str, parameters: _Parameters, workers: int) -> None:
    """Render beside ``folder`` and rename at the end, so that nobody ever sees a half-written data set."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)) for _ in range(2))
    try:
        form = FORMATS[name]
        frames = form.frames(parameters.train, parameters.val)
        chunks = [frames[start : start + _CHUNK] for start in range(0, len(frames), _CHUNK)]
        finished = 0
        for count in _run([(name, draft, chunk, parameters.size, parameters.seed) for chunk in chunks], workers):
            finished += count
            if sys.stderr.isatty():
                end = "\n" if finished == len(frames) else ""
                print(f"\r{name}: {finished}/{len(frames)} frames", end=end, file=sys.stderr, flush=True)
        form.finish(draft, frames)
        (draft / MANIFEST).write_text(parameters.text())
        draft.chmod(0o755)
        if folder.exists():  # only with a manifest and `overwrite`: see `_is_done`
            os.replace(folder, old)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


_Job = tuple[str, Path, list[Frame], tuple[int, int], int]


def _run(jobs: list[_Job], workers: int) -> Iterator[int]:
    """Do the jobs; yield how many frames each one made."""
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from map(_work, jobs)
        return
    # Forked workers start at once; spawned ones would import PyTorch first. OpenCV's threads do not survive a fork.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for future in as_completed([pool.submit(_work, job) for job in jobs]):
                yield future.result()
    finally:
        cv2.setNumThreads(threads)


def _work(job: _Job) -> int:
    name, base, frames, size, seed = job
    form = FORMATS[name]
    own_ids = form.own_ids()
    for frame in frames:
        image, label = render_frame(name, frame.split, frame.index, size, seed)
        form.write(base, frame, image, own_ids[label])
    return len(frames)


def contact_sheet(
    data_sets: Sequence[str], size: tuple[int, int] = (128, 256), seed: int = 0, pairs: int = 3
) -> np.ndarray:
    """(H, W, 3) uint8 RGB: one row for each data set, ``pairs`` times image | coloured label."""
    height, width = size
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(PALETTE)] = PALETTE
    colours[IGNORE] = 0
    rows = []
    for name in data_sets:
        row = []
        for index in range(pairs):
            image, label = render_frame(name, "train", index, size, seed)
            for picture, how in ((image, cv2.INTER_AREA), (colours[label], cv2.INTER_NEAREST)):
                row.append(
                    np.pad(
                        cv2.resize(picture, (width, height), interpolation=how),
                        ((2, 2), (2, 2), (0, 0)),
                        constant_values=255,
                    )
                )
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows, axis=0)


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write HEIGHTxWIDTH, e.g. 128x256") from None
    return height, width


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Render small street scenes in five domains, in the on-disk formats of the five real data sets.",
        epilog="examples:\n"
        "  python -m datasets.render --root datasets/rendered\n"
        "      all five data sets, 160 train and 40 val frames each\n"
        "  python -m datasets.render --root /tmp/d --data-sets cityscapes bdd100k --train 24 --val 8\n"
        "      two small ones; then: export DETECTRON2_DATASETS=/tmp/d\n"
        "  python -m datasets.render --contact-sheet sheet.png\n"
        "      only look: one row for each data set, image | label\n\n"
        "The same arguments always give the same pictures, whatever the number of workers. A folder that was rendered\n"
        "with the same arguments is left alone; one that was not rendered is never touched.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="where to write, e.g. $DETECTRON2_DATASETS")
    parser.add_argument(
        "--data-sets",
        nargs="+",
        default=list(DOMAINS),
        choices=list(DOMAINS),
        metavar="NAME",
        help=f"which ones (default: {' '.join(DOMAINS)})",
    )
    parser.add_argument("--train", type=int, default=160, metavar="N", help="frames in each train split (default: 160)")
    parser.add_argument("--val", type=int, default=40, metavar="N", help="frames in each val split (default: 40)")
    parser.add_argument(
        "--size", type=_size, default=(128, 256), metavar="HxW", help="height x width in pixels (default: 128x256)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other streets (default: 0)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each CPU core)")
    parser.add_argument("--overwrite", action="store_true", help="replace what was rendered with other parameters")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="FILE.png", help="write an overview picture; needs no --root"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.root is None and args.contact_sheet is None:
        parser.error("give --root DIR (where to write) or --contact-sheet FILE.png")
    try:
        if args.root is not None:
            for done in render(
                args.root, args.data_sets, args.train, args.val, args.size, args.seed, args.workers, args.overwrite
            ):
                print(
                    f"{done.folder}: {done.frames} frames"
                    if done.new
                    else f"{done.folder}: already rendered, nothing to do"
                )
        if args.contact_sheet is not None:
            Image.fromarray(contact_sheet(args.data_sets, args.size, args.seed)).save(args.contact_sheet)
            print(args.contact_sheet)
    except RenderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
