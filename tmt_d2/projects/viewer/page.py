"""What is where on the page and how it looks; needs Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
import numpy as np

from tmt_d2.data.reader import read_image
from tmt_d2.projects.viewer.events import CENTRE, Events
from tmt_d2.projects.viewer.pixel_view import TEMPLATES
from tmt_d2.projects.viewer.trained_models import Viewer
from tmt_d2.projects.viewer.uploads import MAX_MEGABYTES, MAX_MEGAPIXELS
from tmt_d2.visualization.sizes import shrink

CSS, CLICK_PIXEL, CLICK_EXAMPLE, TITLE = (
    TEMPLATES.get_template(name).render() for name in ("viewer.css", "click_pixel.js", "click_example.js", "title.html")
)


def build(viewer: Viewer, examples: Sequence[Path], uploads: Path) -> gradio.Blocks:
    """The page as ``gradio.Blocks``; uploads: the folder that Gradio writes uploads to."""
    names = list(viewer.checkpoints)
    choices = [(checkpoint.title, name) for name, checkpoint in viewer.checkpoints.items()]
    pictures = [shrink(read_image(str(path))) for path in examples]
    first_picture = pictures[0] if pictures else None
    first_layer = viewer.layers(names[0]) - 1
    first_p_t = viewer.p_t(names[0])
    events = Events(viewer, pictures, uploads)
    with gradio.Blocks(title="Transferable Mask Transformer", analytics_enabled=False) as page:
        gradio.HTML(TITLE, elem_id="title")
        picture = gradio.State(first_picture, time_to_live=3600)
        at = gradio.State(CENTRE)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=270):
                file = gradio.File(label="Your image", file_types=["image"], height=150, elem_id="drop")
                thumbs = gradio.HTML(thumbnails_html(pictures), js_on_load=CLICK_EXAMPLE)
                name = gradio.Dropdown(choices, value=names[0], label="Checkpoint", elem_id="checkpoint")
                other = gradio.Dropdown(
                    [("none", ""), *choices], value="", label="Compare with", elem_id="other", visible=len(names) > 1
                )
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
        redraw = {"fn": events.show, "inputs": [picture, at, name, layer, p_t, other], "outputs": stage, **shared}
        file.upload(events.upload, file, [file, picture, at], preprocess=False, **shared).success(**redraw)
        thumbs.click(events.example, None, [picture, at], show_progress="hidden", **shared).success(**redraw)
        stage.click(events.click, None, at, show_progress="hidden", **shared).success(**redraw)
        name.input(events.checkpoint, [name, layer], [layer, p_t], **shared).success(**redraw)
        layer.input(**redraw)
        other.input(**redraw)
        # Dragged, typed or by arrow keys: while one value is shown, only the last of the others waits.
        p_t.input(**redraw, trigger_mode="always_last")
    return page


def thumbnails_html(pictures: Sequence[np.ndarray]) -> str:
    thumbnails = [shrink(picture, 160) for picture in pictures]
    return TEMPLATES.get_template("thumbnails.html").render(
        pictures=thumbnails, megabytes=MAX_MEGABYTES, megapixels=MAX_MEGAPIXELS
    )
