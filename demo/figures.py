#!/usr/bin/env python
"""The figures of the README, from a finished `make demo`.

    python -m demo.figures --demo output/demo --output docs

writes into --output, each below 300 kB:

    transferability.jpg   per level of one target image: T by rank, what p_T excludes, the regions of ACTE
    attention.jpg         one query in the last decoder layer: its mask, what T takes away, attention with TMT and without
    statistics.jpg        which classes T excludes, over the target's validation split

The image and the query are those, of the whole split, in which T takes away about half of a large mask of the last
layer in a bright picture: there is most to see.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from matplotlib.figure import Figure
from PIL import Image

from demo.run import TARGET, fine_tuned
from demo.visualize_attention import Loaded, load, report_image, statistics_of
from tmt_d2.cli import one_line_errors
from tmt_d2.data.registration import split_name
from tmt_d2.files import atomic_write
from tmt_d2.pictures.exclusion import statistics_figure
from tmt_d2.pictures.figures import drawn, layer_panels, level_row, said
from tmt_d2.pictures.inspection import AttentionReport, QueryReport
from tmt_d2.pictures.overlays import KEPT, REMOVED, mask_overlay, resized
from tmt_d2.pictures.panels import Panel, Row, draw, to_array

SPLIT = split_name(TARGET, "val")
CLASSES = ("car", "bus", "truck", "person", "building", "road")  # whose queries are looked at
MAX_BYTES = 300_000
QUALITIES = (92, 88, 84, 80, 75, 70, 60, 50)


def interest(query: QueryReport) -> float:
    """0 to 0.25: large masks of a confident query, of which T takes away about a half, in the last layer."""
    layer = query.layers[-1]
    if layer.mask_empty or layer.left_with_nothing:
        return 0.0
    taken = layer.removed.sum() / layer.predicted.sum()
    return float(query.confidence * taken * (1 - taken) * min(1.0, 4 * layer.predicted.mean()))


def choose(tmt: Loaded, records: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], AttentionReport]:
    """The record with the most interesting query, and its report with that query alone."""
    best: tuple[float, dict[str, Any], int] | None = None
    for record in records:
        report = report_image(tmt, record, CLASSES, 0, None)
        for query in report.queries:
            score = interest(query) * float(report.picture.mean())
            if best is None or score > best[0]:
                best = score, record, query.choice.query
    if best is None:
        raise ValueError(f"{SPLIT} has no image")
    return best[1], report_image(tmt, best[1], [best[2]], 0, None)


def transferability(report: AttentionReport) -> Figure:
    """T by rank, what is excluded, and the regions, level by level."""
    picture = drawn(report.picture)
    rows = [
        Row(row.panels[1:], row.label) for row in (level_row(picture, level, report.p_t) for level in report.levels)
    ]
    heading = "Transferability of a target image: yellow is like the source"
    return draw(
        rows, heading, [(f"excluded from attention: the {100 * (report.p_t or 0):.0f} % with the highest T", REMOVED)]
    )


def attention(tmt: AttentionReport, full: AttentionReport) -> Figure:
    """The last layer of one query of TMT, and of the same model fine-tuned without."""
    picture = drawn(tmt.picture)
    query, other = tmt.queries[0], full.queries[0]
    layer = query.layers[-1]
    mask = resized(query.mask.astype(np.uint8), picture.shape[:2]) > 0
    _, conjunction, with_t = layer_panels(picture, layer, ", TMT", True, ())
    _, without_t = layer_panels(picture, other.layers[-1], ", Mask2Former", False, ())
    by_rank = level_row(picture, tmt.levels[layer.level], tmt.p_t).panels[1]
    rows = [
        Row([Panel(picture, "image"), Panel(mask_overlay(picture, mask), "mask of one query", said(query)), by_rank]),
        Row([without_t, conjunction, with_t]),
    ]
    heading = f"Where the {query.name} query looks (decoder layer {layer.layer}, stride {layer.grid.stride})"
    return draw(rows, heading, [("may be attended to", KEPT), ("excluded by T", REMOVED)])


def write(figure: Figure, path: Path) -> None:
    """As JPEG of the best quality that stays below MAX_BYTES."""
    image = Image.fromarray(to_array(figure))
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=0)
        if buffer.tell() < MAX_BYTES:
            break
    else:
        raise ValueError(f"{path}: has {buffer.tell()} bytes even at quality {quality}, the limit is {MAX_BYTES}")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
    print(f"{path}: {image.width}x{image.height}, {buffer.tell() / 1000:.0f} kB, quality {quality}")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    folders = fine_tuned(args.demo)
    for folder in folders.values():
        if not (folder / "model_final.pth").is_file():
            raise FileNotFoundError(f"--demo {args.demo}: no {folder}/model_final.pth: run `make demo` first")
    os.environ["DETECTRON2_DATASETS"] = str(args.demo / "data")
    tmt, full = (
        load(str(folders[name] / "config.yaml"), str(folders[name] / "model_final.pth")) for name in ("tmt", "full")
    )
    args.output.mkdir(parents=True, exist_ok=True)
    record, chosen = choose(tmt, DatasetCatalog.get(SPLIT))
    query = chosen.queries[0]
    print(f"{record['file_name']}: query {query.choice.query}, {query.name}")
    write(transferability(chosen), args.output / "transferability.jpg")
    write(attention(chosen, report_image(full, record, [query.name], 0, None)), args.output / "attention.jpg")
    result = statistics_of(tmt, SPLIT, None)
    heading = f"What transferability excludes in {result['images']} target images"
    write(statistics_figure(result, heading), args.output / "statistics.jpg")


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--demo", type=Path, default=Path("output/demo"), metavar="FOLDER", help="of a finished demo; %(default)s")
    add("--output", type=Path, default=Path("docs"), metavar="FOLDER", help="%(default)s")
    return arguments


if __name__ == "__main__":
    with one_line_errors():
        main()
    sys.exit(0)
