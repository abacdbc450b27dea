"""Figures of README and docs: selection of the image and the query, and the layout."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from tmt_d2.errors import UserError
from tmt_d2.inference.attention import report_image
from tmt_d2.inference.images import InputImage
from tmt_d2.inference.predictor import Predictor
from tmt_d2.utils.files import atomic_write
from tmt_d2.visualization.figures import layer_panels, level_row, query_summary
from tmt_d2.visualization.inspection import AttentionReport, QueryReport
from tmt_d2.visualization.overlays import KEPT, REMOVED, mask_overlay
from tmt_d2.visualization.panels import Panel, PanelRow, draw, to_array
from tmt_d2.visualization.sizes import enlarge

CLASSES = ("car", "bus", "truck", "person", "building", "road")  # classes whose queries are compared
MAX_BYTES = 300_000
QUALITIES = (92, 88, 84, 80, 75, 70, 60, 50)


def interest(query: QueryReport) -> float:
    """Return 0 to 0.25, high for a confident query with a large mask of which T excludes half in the last layer."""
    layer = query.layers[-1]
    if layer.mask_empty or layer.none_transferable:
        return 0.0
    removed = layer.removed.sum() / layer.predicted.sum()
    return float(query.confidence * removed * (1 - removed) * min(1.0, 4 * layer.predicted.mean()))


def most_interesting(tmt: Predictor, images: Iterable[InputImage]) -> tuple[InputImage, AttentionReport]:
    """Return the image with the most interesting query, preferring bright images, and its report of that query."""
    images, scores = list(images), []
    for index, image in enumerate(images):
        report = report_image(tmt, image, CLASSES)
        brightness = float(report.image.mean())
        scores += [(interest(query) * brightness, index, query.selected.query) for query in report.queries]
    _, index, query = max(scores, key=lambda item: item[0])
    return images[index], report_image(tmt, images[index], [query])


def transferability(report: AttentionReport) -> Figure:
    """Draw T by rank, the excluded positions and the regions of each level."""
    image = enlarge(report.image)
    rows = [level_row(image, level, report.p_t) for level in report.levels]
    heading = "Transferability of a target image: yellow is like the source"
    excluded = f"excluded from attention: the {100 * (report.p_t or 0):.0f} % with the highest T"
    return draw([PanelRow(row.panels[1:], row.label) for row in rows], heading, [(excluded, REMOVED)])


def attention(tmt: AttentionReport, full: AttentionReport) -> Figure:
    """Draw the last layer of one query of TMT and of the model fine-tuned without TMT."""
    image = enlarge(tmt.image)
    query, other = tmt.queries[0], full.queries[0]
    layer = query.layers[-1]
    _, conjunction, with_t = layer_panels(image, layer, ", TMT", True, ())
    _, without_t = layer_panels(image, other.layers[-1], ", Mask2Former", False, ())
    by_rank = level_row(image, tmt.levels[layer.level], tmt.p_t).panels[1]
    final_mask = Panel(mask_overlay(image, query.mask), "mask of one query", query_summary(query))
    rows = [PanelRow([Panel(image, "image"), final_mask, by_rank]), PanelRow([without_t, conjunction, with_t])]
    heading = f"Where the {query.name} query looks (decoder layer {layer.layer}, stride {layer.grid.stride})"
    return draw(rows, heading, [("may be attended to", KEPT), ("excluded by T", REMOVED)])


def save_jpeg(figure: Figure, path: Path) -> str:
    """Write the JPEG of the best quality below ``MAX_BYTES``; return a line about it."""
    pixels = Image.fromarray(to_array(figure))
    for quality in QUALITIES:
        buffer = io.BytesIO()
        pixels.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=0)
        if buffer.tell() < MAX_BYTES:
            break
    else:
        raise UserError(f"{buffer.tell()} bytes even at quality {quality}, the limit is {MAX_BYTES}", key=path)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
    return f"{path}: {pixels.width}x{pixels.height}, {buffer.tell() / 1000:.0f} kB, quality {quality}"
