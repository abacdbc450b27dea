"""Layout and events of the page; needs Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import gradio
import numpy as np

from tmt_d2.data.reader import read_image
from tmt_d2.errors import UserError
from tmt_d2.projects.viewer.checkpoints import Viewer
from tmt_d2.projects.viewer.pixel_view import TEMPLATES
from tmt_d2.projects.viewer.uploads import MAX_MEGABYTES, MAX_MEGAPIXELS, read_upload
from tmt_d2.visualization.sizes import shrink

CENTER = (0.5, 0.5)
CSS, CLICK_PIXEL, CLICK_EXAMPLE, TITLE = (
    TEMPLATES.get_template(name).render() for name in ("viewer.css", "click_pixel.js", "click_example.js", "title.html")
)


class Events:
    """Answers to uploads, clicks and choices. Points (x, y) are in [0, 1].

    Args:
        examples: images offered on the page.
        uploads: the folder that Gradio writes uploads to.
    """

    def __init__(self, viewer: Viewer, examples: Sequence[np.ndarray], uploads: Path) -> None:
        self.viewer, self.examples, self.uploads = viewer, examples, uploads

    def show(
        self, image: np.ndarray | None, at: tuple[float, float], name: str, layer: int, p_t: float, other: str = ""
    ) -> str:
        """Render the pixel; other: a second checkpoint to show below, in the same layer or in its last."""
        if image is None:
            return "<p>Drop an image to begin.</p>"
        if not other:
            return self.viewer.show(image, at, name, layer, p_t)
        shown = []
        for each in (name, other):
            shown.append(f'<div class="tmt-model">{escape(self.viewer.checkpoints[each].title)}</div>')
            shown.append(self.viewer.show(image, at, each, min(layer, self.viewer.layers(each) - 1), p_t))
        return "".join(shown)

    def upload(self, file: Mapping[str, Any]) -> tuple[None, Any, Any]:
        """Read and delete an upload; None empties the drop zone for the next image."""
        path = Path(file["path"]).resolve()
        if not path.is_relative_to(self.uploads.resolve()):
            raise gradio.Error("this file was not uploaded here", print_exception=False)
        try:
            return None, read_upload(path), CENTER
        except UserError as error:
            gradio.Warning(escape(str(error), quote=False))
            return None, gradio.skip(), gradio.skip()
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # Gradio's folder of this file, unless the same file is being uploaded again
                path.parent.rmdir()

    def click(self, event: gradio.EventData) -> tuple[float, float]:
        x, y = (min(max(float(value), 0.0), 1.0) for value in (event.x, event.y))
        return x, y

    def example(self, event: gradio.EventData) -> tuple[np.ndarray, tuple[float, float]]:
        return self.examples[int(event.index)], CENTER

    def checkpoint(self, name: str, layer: int) -> tuple[Any, Any]:
        """Return the layers and the slider of another model; the chosen layer is kept if it exists."""
        p_t = self.viewer.p_t(name)
        return (
            gradio.Radio(choices=self.layer_choices(name), value=min(layer, self.viewer.layers(name) - 1)),
            gradio.Slider(value=p_t or 0, interactive=p_t is not None),
        )

    def layer_choices(self, name: str) -> list[tuple[str, int]]:
        return [(str(layer), layer) for layer in range(self.viewer.layers(name))]


def build(viewer: Viewer, example_files: Sequence[Path], uploads: Path) -> gradio.Blocks:
    """Build the page; uploads: the folder that Gradio writes uploads to."""
    choices = [(checkpoint.title, name) for name, checkpoint in viewer.checkpoints.items()]
    examples = [shrink(read_image(str(path))) for path in example_files]
    first, first_image = next(iter(viewer.checkpoints)), examples[0] if examples else None
    first_layer, first_p_t = viewer.layers(first) - 1, viewer.p_t(first)
    events = Events(viewer, examples, uploads)
    with gradio.Blocks(title="Transferable Mask Transformer", analytics_enabled=False) as page:
        gradio.HTML(TITLE, elem_id="title")
        image = gradio.State(first_image, time_to_live=3600)
        at = gradio.State(CENTER)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=270):
                file = gradio.File(label="Your image", file_types=["image"], height=150, elem_id="drop")
                thumbnails = TEMPLATES.get_template("thumbnails.html").render(
                    images=[shrink(each, 160) for each in examples],
                    megabytes=MAX_MEGABYTES,
                    megapixels=MAX_MEGAPIXELS,
                )
                thumbs = gradio.HTML(thumbnails, js_on_load=CLICK_EXAMPLE)
                name = gradio.Dropdown(choices, value=first, label="Checkpoint", elem_id="checkpoint")
                several = len(choices) > 1
                other = gradio.Dropdown(
                    [("none", ""), *choices], value="", label="Compare with", elem_id="other", visible=several
                )
                layer = gradio.Radio(
                    events.layer_choices(first), value=first_layer, label="Decoder layer", elem_id="layer"
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
                    events.show(first_image, CENTER, first, first_layer, first_p_t or 0),
                    js_on_load=CLICK_PIXEL,
                    elem_id="stage",
                )

        shared: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        redraw = {"fn": events.show, "inputs": [image, at, name, layer, p_t, other], "outputs": stage, **shared}
        file.upload(events.upload, file, [file, image, at], preprocess=False, **shared).success(**redraw)
        thumbs.click(events.example, None, [image, at], show_progress="hidden", **shared).success(**redraw)
        stage.click(events.click, None, at, show_progress="hidden", **shared).success(**redraw)
        name.input(events.checkpoint, [name, layer], [layer, p_t], **shared).success(**redraw)
        layer.input(**redraw)
        other.input(**redraw)
        p_t.input(**redraw, trigger_mode="always_last")  # while one value is drawn, only the last of the others waits
    return page
