"""Render data sets of street scenes: images that depend only on seed, data set, split, frame number and size."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from tmt_d2.errors import UserError, did_you_mean
from tmt_d2.projects.street_scenes.appearance import film
from tmt_d2.projects.street_scenes.canvas import OVERSAMPLING, Camera, Canvas
from tmt_d2.projects.street_scenes.domains import DOMAINS
from tmt_d2.projects.street_scenes.formats import FORMATS, Frame
from tmt_d2.projects.street_scenes.objects import Painter
from tmt_d2.projects.street_scenes.scene import lay_out

MANIFEST = ".rendered.json"
VERSION = 1  # raise it when the same options give other images
_SMALLEST_SIDE = 16
_CHUNK = 8  # frames of a worker at a time


def render_frame(
    data_set: str, split: str, index: int, size: tuple[int, int] = (128, 256), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Render image (H, W, 3) uint8 RGB and label (H, W) uint8 train ids (255 = ignore) of one frame.

    Args:
        size: (height, width). The sizes of Mapillary frames vary around it.
    """
    domain = DOMAINS[data_set]
    rng = np.random.default_rng([seed, zlib.crc32(data_set.encode()), zlib.crc32(split.encode()), index])
    factors = domain.sizes[int(rng.integers(len(domain.sizes)))]
    height, width = (max(round(side * factor), _SMALLEST_SIDE) for side, factor in zip(size, factors))
    scene = lay_out(domain.street, rng)
    shares = np.array([light.share for light in domain.lights])
    light = domain.lights[int(rng.choice(len(shares), p=shares / shares.sum()))]

    tall, wide = height * OVERSAMPLING, width * OVERSAMPLING
    focal = scene.focal * (wide + 2 * tall) / 2  # relative to the width of a 2:1 image
    canvas = Canvas(Camera((tall, wide), scene.camera_height, focal, scene.vanishing_x * wide, scene.horizon * tall))
    painter = Painter(canvas, scene, domain, light, rng)
    painter.street()
    for thing in scene.things:
        painter.thing(thing)
    if domain.hood:
        painter.hood()
    image, label, depth = canvas.finish()
    glow = [(x / OVERSAMPLING, y / OVERSAMPLING, radius / OVERSAMPLING, color) for x, y, radius, color in painter.glow]
    return film(image, label, depth, glow, domain, light, rng), label


@dataclass(frozen=True)
class RenderedSet:
    """One data set on disk; ``new`` is False if the folder already held exactly this."""

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
) -> list[RenderedSet]:
    """Write the data sets below ``root``; a folder that already holds exactly this is left alone.

    A data set appears under its name when it is complete.

    Args:
        size: (height, width). workers: number of processes; by default one per CPU core.
        overwrite: replace folders that were rendered with other options.

    Raises:
        UserError: an unknown data set, a size or count that is too small, a folder rendered with other options
            without ``overwrite``, or a folder that was not rendered.
    """
    for name in data_sets:
        if name not in FORMATS:
            raise UserError(f"unknown data set{did_you_mean(name, FORMATS)}", key="--data-sets", value=name)
    if min(size) < _SMALLEST_SIDE:
        raise UserError(f"both sides need at least {_SMALLEST_SIDE} pixels", key="--size", value=size)
    if min(train, val) < 0 or train + val == 0:
        raise UserError("there must be frames", key="--train and --val", value=(train, val))
    if workers is not None and workers < 1:
        raise UserError("must be at least 1", key="--workers", value=workers)
    manifest = {"train": train, "val": val, "size": list(size), "seed": seed, "version": VERSION}
    folders = {name: Path(root) / FORMATS[name].folder for name in data_sets}
    done = {name: _is_done(folder, manifest, overwrite) for name, folder in folders.items()}  # check before any work
    for name, folder in folders.items():
        if not done[name]:
            _render_one(folder, name, manifest, workers or os.cpu_count() or 1)
    return [RenderedSet(name, folder, train + val, not done[name]) for name, folder in folders.items()]


def _is_done(folder: Path, manifest: dict[str, Any], overwrite: bool) -> bool:
    if not folder.exists():
        return False
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"it has no {MANIFEST}, so it may be real data", key=folder, hint="choose another --root")
    if json.loads(path.read_text()) == manifest:
        return True
    if not overwrite:
        raise UserError("it was rendered with other options", key=folder, hint="--overwrite replaces it")
    return False


def _render_one(folder: Path, name: str, manifest: dict[str, Any], workers: int) -> None:
    """Render beside ``folder`` and rename at the end, so that nobody sees an incomplete data set."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)) for _ in range(2))
    frames = FORMATS[name].frames(manifest["train"], manifest["val"])
    write = partial(_write_frame, name, draft, tuple(manifest["size"]), manifest["seed"])
    progress = partial(tqdm, total=len(frames), desc=name, unit="frame", disable=None)
    try:
        if workers == 1 or len(frames) <= _CHUNK:
            for frame in progress(frames):
                write(frame)
        else:
            # Forked workers start at once; spawned ones would import PyTorch first. OpenCV's threads do not survive
            # a fork.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
            threads = cv2.getNumThreads()
            cv2.setNumThreads(1)
            try:
                with ProcessPoolExecutor(workers, mp_context=context) as pool:
                    list(progress(pool.map(write, frames, chunksize=_CHUNK)))
            finally:
                cv2.setNumThreads(threads)
        FORMATS[name].finish(draft, frames)
        (draft / MANIFEST).write_text(json.dumps(manifest) + "\n")
        draft.chmod(0o755)
        if folder.exists():  # only with a manifest and `overwrite`
            os.replace(folder, old)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_frame(name: str, base: Path, size: tuple[int, int], seed: int, frame: Frame) -> None:
    image, label = render_frame(name, frame.split, frame.index, size, seed)
    FORMATS[name].write(base, frame, image, FORMATS[name].own_ids()[label])
