"""What is where on the page and how it looks; needs Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
import numpy as np

from tmt_d2.data.reader import read_image
from tmt_d2.pictures import html
from tmt_d2.pictures.viewer.events import CENTRE, Events
from tmt_d2.pictures.viewer.images import LONGEST, MAX_MEGABYTES, MAX_MEGAPIXELS, within
from tmt_d2.pictures.viewer.models import Viewer

CSS = (
    html.CSS
    + """
.gradio-container { max-width: 1500px !important; }
footer { display: none !important; }
#title h1 { margin: 0 0 2px; font-size: 24px; } #title p { margin: 0; opacity: .8; }
.tmt-thumbs { display: grid; grid-template-columns: repeat(4, 1fr); gap: 6px; }
.tmt-thumbs img { width: 100%; aspect-ratio: 3 / 2; object-fit: cover; border-radius: 5px; cursor: pointer; margin: 0; }
.tmt-thumbs img:hover { outline: 2px solid var(--color-accent); }
.tmt-thumbs-label { font-size: 13px; opacity: .75; margin-bottom: 5px; }
"""
)

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


def build(viewer: Viewer, examples: Sequence[Path], uploads: Path) -> gradio.Blocks:
    """The page as ``gradio.Blocks``; uploads: the folder that Gradio writes uploads to."""
    names = list(viewer.checkpoints)
    pictures = [within(read_image(str(path)), LONGEST) for path in examples]
    first_picture = pictures[0] if pictures else None
    first_layer = viewer.layers(names[0]) - 1
    first_p_t = viewer.p_t(names[0])
    events = Events(viewer, pictures, uploads)
    with gradio.Blocks(title="Transferable Mask Transformer", analytics_enabled=False) as page:
        gradio.HTML(
            "<h1>Transferable Mask Transformer</h1><p>Click a pixel: the query that owns it, where it may look, and "
            "where it does. Red is what transferability takes away.</p>",
            elem_id="title",
        )
        picture = gradio.State(first_picture, time_to_live=3600)
        at = gradio.State(CENTRE)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=270):
                file = gradio.File(label="Your image", file_types=["image"], height=150, elem_id="drop")
                thumbs = gradio.HTML(thumbs_html(pictures), js_on_load=CLICK_EXAMPLE)
                name = gradio.Dropdown(names, value=names[0], label="Checkpoint", elem_id="checkpoint")
                layer = gradio.Radio(
                    events.layer_choices(names[0]), value=first_layer, label="Decoder layer", elem_id="layer"
                )
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
                    events.show(first_picture, CENTRE, names[0], first_layer, first_p_t or 0),
                    js_on_load=CLICK_PIXEL,
                    elem_id="stage",
                )

        shared: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        redraw = {"fn": events.show, "inputs": [picture, at, name, layer, p_t], "outputs": stage, **shared}
        file.upload(events.upload, file, [file, picture, at], preprocess=False, **shared).success(**redraw)
        thumbs.click(events.example, None, [picture, at], show_progress="hidden", **shared).success(**redraw)
        stage.click(events.click, None, at, show_progress="hidden", **shared).success(**redraw)
        name.input(events.checkpoint, [name, layer], [layer, p_t], **shared).success(**redraw)
        layer.input(**redraw)
        p_t.release(**redraw)
    return page


def thumbs_html(pictures: Sequence[np.ndarray]) -> str:
    images = (
        f'<img data-index="{index}" alt="example {index + 1}" src="{html.data_uri(within(picture, 160))}">'
        for index, picture in enumerate(pictures)
    )
    label = f"up to {MAX_MEGABYTES} MB and {MAX_MEGAPIXELS} megapixels" + (", or one of these:" if pictures else "")
    return f'<div class="tmt-thumbs-label">{label}</div><div class="tmt-thumbs">{"".join(images)}</div>'
