#!/usr/bin/env python
"""A page to play with: drop an image, click a pixel, see what its query attends to and what transferability forbids.

    pip install -e '.[app]'                     once: Gradio
    make demo                                   once: the models, in output/demo
    python demo/app.py                          then open http://127.0.0.1:7860
    python demo/app.py --output output/pair     any other folder of trained models

Every folder below --output that holds model_final.pth and config.yaml is offered as a checkpoint, and images of the
data sets below --output/data as examples. The page shows, for the query that owns the clicked pixel: its mask, the
transferability T of the level that the chosen decoder layer attends to, the mask before and after T, and the attention
weights that the network used. The slider changes p_T, the share of positions with the highest T that no query may
attend to; at 0 it is plain Mask2Former.

The page answers this machine only, unless --host says otherwise, and loads nothing from elsewhere. Uploads are read
into memory and deleted at once; nothing is kept after the end (Ctrl-C).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from tmt_d2.data.augmentation import Crop, crop_image
from tmt_d2.data.label_spaces import CLASSES, PALETTE
from tmt_d2.data.reader import read_image
from tmt_d2.deployment import load_model
from tmt_d2.engine.cli import one_line_errors
from tmt_d2.modeling.mask_former import MaskFormer, TransferableMaskFormer
from tmt_d2.visualization import AttentionReport, Panel, Row, attention_report
from tmt_d2.visualization.figures import drawn, layer_panels, level_row, said
from tmt_d2.visualization.html import CSS, data_uri, legend_html, rows_html
from tmt_d2.visualization.overlays import KEPT, REMOVED, label_overlay, mask_overlay, resized

try:
    import gradio
    from starlette.middleware import Middleware
except ImportError:  # ``main`` says what to install; everything but the page works without
    gradio = None

INSTALL = "the page needs Gradio 6: pip install -e '.[app]'"
MAX_MEGABYTES = 25
MAX_MEGAPIXELS = 40
LONGEST = 2048  # larger images reach the model at this length of the longer side
LONGEST_SHOWN = 960
EXAMPLES = 8
FIRST = ("tmt", "full")  # checkpoints in this order, then the others by name
MODELS_KEPT = 2
SESSIONS = 16  # whose images are held in memory


@dataclass(frozen=True)
class Checkpoint:
    """A trained model: its name on the page and its files."""

    name: str
    config_file: Path
    weights: Path


def find_checkpoints(folder: Path) -> dict[str, Checkpoint]:
    """By name, those below ``folder``.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [
        Checkpoint(weights.parent.relative_to(folder).as_posix(), weights.with_name("config.yaml"), weights)
        for weights in sorted(folder.rglob("model_final.pth"))
        if weights.with_name("config.yaml").is_file()
    ]
    if not found:
        raise FileNotFoundError(
            f"--output {folder}: no folder with model_final.pth and config.yaml here: run `make demo`, "
            "or name the output folder of train_net.py or train_pair.py"
        )
    rank = {name: index for index, name in enumerate(FIRST)}
    found.sort(key=lambda checkpoint: rank.get(checkpoint.weights.parent.name, len(FIRST)))
    return {checkpoint.name: checkpoint for checkpoint in found}


def find_examples(folder: Path) -> list[Path]:
    """A few validation images of the data sets below ``folder``, those of the target (not Cityscapes) first."""
    files = [path for path in folder.rglob("*") if path.suffix in (".jpg", ".png") and "val" in path.parts]
    images = [path for path in files if not {"labels", "gtFine", "masks"} & set(path.parts)]
    return sorted(images, key=lambda path: ("cityscapes" in path.parts, path.name))[:EXAMPLES]


def read_upload(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as its EXIF says, at most LONGEST on the longer side.

    Raises:
        ValueError: too large, or no image; one line that names the file without its folder.
    """
    size = path.stat().st_size
    if size > MAX_MEGABYTES * 2**20:
        raise ValueError(f"{path.name} has {size / 2**20:.1f} MB: the page takes at most {MAX_MEGABYTES} MB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(path).size  # reads the header only
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} is no image that can be read here (PNG, JPEG, WebP, TIFF, BMP)") from error
    if width * height > MAX_MEGAPIXELS * 10**6:
        raise ValueError(
            f"{path.name} is {width}x{height}, {width * height / 10**6:.1f} megapixels: the page takes at most "
            f"{MAX_MEGAPIXELS}"
        )
    try:
        picture = read_image(str(path), oriented=True)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error
    return within(picture, LONGEST)


def within(picture: np.ndarray, longest: int) -> np.ndarray:
    """The picture itself, or smaller, with ``longest`` as the longer side."""
    height, width = picture.shape[:2]
    scale = min(1.0, longest / max(height, width))
    return resized(picture, (max(1, round(height * scale)), max(1, round(width * scale))))


class Viewer:
    """Models by name, loaded when asked for, and what they see as HTML."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]):
        self.checkpoints = checkpoints
        self._lock = threading.Lock()  # p_T belongs to the model, so one look at a time
        self._load = lru_cache(MODELS_KEPT)(self._read)

    def _read(self, name: str) -> tuple[CfgNode, MaskFormer, float | None]:
        checkpoint = self.checkpoints[name]
        cfg, model = load_model(str(checkpoint.config_file), str(checkpoint.weights))
        is_tmt = isinstance(model, TransferableMaskFormer) and model.attention and not model.soft
        return cfg, model, model.p_t if is_tmt else None

    def layers(self, name: str) -> int:
        return self._load(name)[1].sem_seg_head.predictor.num_layers

    def p_t(self, name: str) -> float | None:
        """As trained; None where transferability masks no attention."""
        return self._load(name)[2]

    def show(self, picture: np.ndarray, at: tuple[float, float], name: str, layer: int, p_t: float) -> str:
        """
        Args:
            picture: (H, W, 3) uint8 RGB of any size. at: the clicked point (x, y), in [0, 1] of width and height.
        """
        shown = within(picture, LONGEST_SHOWN)
        height, width = shown.shape[:2]
        pixel = tuple(min(int(at[i] * size), size - 1) for i, size in enumerate((width, height)))
        with self._lock:
            cfg, model, trained = self._load(name)
            if trained is not None:
                model.p_t = p_t
            report = attention_report(model, model_input(cfg, picture), shown, wanted=[pixel], layers=[layer])
        return report_html(report, at)


def model_input(cfg: CfgNode, picture: np.ndarray) -> dict[str, torch.Tensor]:
    """A picture in memory, resized as in testing."""
    size = picture.shape[:2]
    shape = size
    if cfg.INPUT.MIN_SIZE_TEST:
        shape = ResizeShortestEdge.get_output_shape(*size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    pixels = crop_image(picture, Crop(size, shape, 0, 0, *shape))
    if cfg.INPUT.FORMAT == "BGR":
        pixels = pixels[..., ::-1]
    return {"image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))}


def report_html(report: AttentionReport, at: tuple[float, float]) -> str:
    """One query in one layer, and the level that this layer attends to."""
    picture = drawn(report.picture)
    size = picture.shape[:2]
    (query,) = report.queries
    (layer,) = query.layers
    mask = resized(query.mask.astype(np.uint8), size) > 0
    rows = [
        Row(
            [
                Panel(picture, "image", "click any picture to choose a pixel"),
                Panel(label_overlay(picture, resized(report.prediction, size)), "prediction", "all queries together"),
                Panel(mask_overlay(picture, mask), "final mask of the pixel's query", said(query)),
            ]
        ),
        Row(
            layer_panels(picture, layer, "", report.p_t is not None, ()),
            f"Attention of query {query.choice.query} in decoder layer {layer.layer}, stride {layer.grid.stride}",
        ),
    ]
    if report.levels:
        level = report.levels[layer.level]
        panels = level_row(picture, level, report.p_t).panels[-3:]  # T by rank, excluded, regions
        t = f"T of this image is {level.t.min():.3g} to {level.t.max():.3g}, mean {level.t.mean():.3g}"
        rows.append(Row(panels, f"Transferability at stride {level.grid.stride}: {t}"))
    classes = [(CLASSES[i], PALETTE[i]) for i in np.unique(report.prediction)]
    marks = [("attended to", KEPT)] + ([("excluded by T", REMOVED)] if report.p_t is not None else [])
    return (
        rows_html(rows[:1], at)
        + legend_html(classes)
        + rows_html(rows[1:2], at)
        + legend_html(marks)
        + rows_html(rows[2:], at)
    )


# The page ---------------------------------------------------------------------------------------------------------

PAGE_CSS = """
.gradio-container { max-width: 1500px !important; }
footer { display: none !important; }
#title h1 { margin: 0 0 2px; font-size: 24px; } #title p { margin: 0; opacity: .8; }
.tmt-thumbs { display: grid; grid-template-columns: repeat(4, 1fr); gap: 6px; }
.tmt-thumbs img { width: 100%; aspect-ratio: 3 / 2; object-fit: cover; border-radius: 5px; cursor: pointer; margin: 0; }
.tmt-thumbs img:hover { outline: 2px solid var(--color-accent); }
.tmt-thumbs-label { font-size: 13px; opacity: .75; margin-bottom: 5px; }
"""

CLICK_PIXEL = """
element.addEventListener('click', event => {
  const picture = event.target.closest('.tmt-pic');
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  element.querySelectorAll('.tmt-mark').forEach(mark => { mark.style.left = 100 * x + '%'; mark.style.top = 100 * y + '%'; });
  trigger('click', {x: x, y: y});
});
"""

CLICK_EXAMPLE = """
element.addEventListener('click', event => {
  if (event.target.dataset.index) trigger('click', {index: Number(event.target.dataset.index)});
});
"""

# The browser obeys this: nothing is loaded from, or sent to, any other machine.
POLICY = (
    b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' ws: data: blob:; "
    b"frame-ancestors 'self'"
)


class OnlyThisServer:
    """ASGI middleware: every answer carries POLICY."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def build(viewer: Viewer, examples: Sequence[Path], uploads: Path) -> gradio.Blocks:
    """The page as ``gradio.Blocks``; uploads: the folder that Gradio writes uploads to."""
    names = list(viewer.checkpoints)
    pictures = [within(read_image(str(path)), LONGEST) for path in examples]
    centre = (0.5, 0.5)

    def choices(name: str) -> list[tuple[str, int]]:
        return [(str(layer), layer) for layer in range(viewer.layers(name))]

    def show(picture: np.ndarray | None, at: tuple[float, float], name: str, layer: int, p_t: float) -> str:
        if picture is None:
            return "<p>Drop an image to begin.</p>"
        return viewer.show(picture, at, name, layer, p_t)

    def upload(file: Mapping[str, Any]) -> tuple[None, Any, Any]:
        """Nothing goes back into the drop zone: it is ready for the next image."""
        path = Path(file["path"]).resolve()
        if not path.is_relative_to(uploads.resolve()):
            raise gradio.Error("this file was not uploaded here", print_exception=False)
        try:
            return None, read_upload(path), centre
        except ValueError as error:
            gradio.Warning(escape(str(error), quote=False))
            return None, gradio.skip(), gradio.skip()
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # Gradio's folder of this one file, unless the same file is coming in again
                path.parent.rmdir()

    def click(event: gradio.EventData) -> tuple[float, float]:
        return tuple(min(max(float(value), 0.0), 1.0) for value in (event.x, event.y))

    def example(event: gradio.EventData) -> tuple[np.ndarray, tuple[float, float]]:
        return pictures[int(event.index)], centre

    def checkpoint(name: str, layer: int) -> tuple[Any, Any]:
        layers, p_t = viewer.layers(name), viewer.p_t(name)
        return (
            gradio.Radio(choices=choices(name), value=min(layer, layers - 1)),
            gradio.Slider(value=p_t or 0, interactive=p_t is not None),
        )

    first_layer = viewer.layers(names[0]) - 1
    first_p_t = viewer.p_t(names[0])
    with gradio.Blocks(title="Transferable Mask Transformer", analytics_enabled=False) as page:
        gradio.HTML(
            "<h1>Transferable Mask Transformer</h1><p>Click a pixel: the query that owns it, where it may look, and "
            "where it does. Red is what transferability takes away.</p>",
            elem_id="title",
        )
        picture = gradio.State(pictures[0] if pictures else None, time_to_live=3600)
        at = gradio.State(centre)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=270):
                file = gradio.File(
                    label="Your image",
                    file_types=["image"],
                    height=150,
                    elem_id="drop",
                )
                thumbs = gradio.HTML(thumbs_html(pictures), js_on_load=CLICK_EXAMPLE)
                name = gradio.Dropdown(names, value=names[0], label="Checkpoint", elem_id="checkpoint")
                layer = gradio.Radio(choices(names[0]), value=first_layer, label="Decoder layer", elem_id="layer")
                p_t = gradio.Slider(
                    0,
                    0.95,
                    value=first_p_t or 0,
                    step=0.05,
                    interactive=first_p_t is not None,
                    label="p_T",
                    info="share excluded from attention",
                    elem_id="p_t",
                )
            with gradio.Column(scale=4, min_width=500):
                stage = gradio.HTML(
                    show(pictures[0] if pictures else None, centre, names[0], first_layer, first_p_t or 0),
                    js_on_load=CLICK_PIXEL,
                    elem_id="stage",
                )

        shared: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        redraw = {"fn": show, "inputs": [picture, at, name, layer, p_t], "outputs": stage, **shared}
        file.upload(upload, file, [file, picture, at], preprocess=False, **shared).success(**redraw)
        thumbs.click(example, None, [picture, at], show_progress="hidden", **shared).success(**redraw)
        stage.click(click, None, at, show_progress="hidden", **shared).success(**redraw)
        name.input(checkpoint, [name, layer], [layer, p_t], **shared).success(**redraw)
        layer.input(**redraw)
        p_t.release(**redraw)
    return page


def thumbs_html(pictures: Sequence[np.ndarray]) -> str:
    images = (
        f'<img data-index="{index}" alt="example {index + 1}" src="{data_uri(within(picture, 160))}">'
        for index, picture in enumerate(pictures)
    )
    label = f"up to {MAX_MEGABYTES} MB and {MAX_MEGAPIXELS} megapixels" + (", or one of these:" if pictures else "")
    return f'<div class="tmt-thumbs-label">{label}</div><div class="tmt-thumbs">{"".join(images)}</div>'


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if gradio is None or int(gradio.__version__.split(".")[0]) < 6:
        raise ValueError(INSTALL)
    viewer = Viewer(find_checkpoints(args.output))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is deleted
    with tempfile.TemporaryDirectory(prefix="tmt_app_") as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(viewer, find_examples(args.output / "data"), Path(folder))
        launch(page, args.host, args.port)


def launch(page: gradio.Blocks, host: str, port: int) -> None:
    """Serve until interrupted."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # of the machine
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_MEGABYTES * 2**20,
        state_session_capacity=SESSIONS,
        enable_monitoring=False,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=gradio.themes.Default(primary_hue="teal", **fonts),
        css=CSS + PAGE_CSS,
        app_kwargs={"middleware": [Middleware(OnlyThisServer)]},
    )
    print(f"open {url} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
    finally:
        page.close(verbose=False)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--output", type=Path, default=Path("output/demo"), metavar="FOLDER", help="trained models; %(default)s")
    add("--host", default="127.0.0.1", help="%(default)s: this machine only; 0.0.0.0: whoever reaches it may upload")
    add("--port", type=int, default=7860, help="%(default)s")
    return arguments


if __name__ == "__main__":
    with one_line_errors():
        main()
    sys.exit(0)
