"""What the page does when something is dropped, clicked or moved; needs Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import gradio
import numpy as np

from tmt_d2.errors import UserError
from tmt_d2.projects.viewer.trained_models import Viewer
from tmt_d2.projects.viewer.uploads import read_upload

CENTRE = (0.5, 0.5)


class Events:
    """pictures: the examples; uploads: the folder that Gradio writes uploads to. Points (x, y) are in [0, 1]."""

    def __init__(self, viewer: Viewer, pictures: Sequence[np.ndarray], uploads: Path):
        self.viewer, self.pictures, self.uploads = viewer, pictures, uploads

    def show(
        self, picture: np.ndarray | None, at: tuple[float, float], name: str, layer: int, p_t: float, other: str = ""
    ) -> str:
        """other: a second checkpoint, shown below the first in the same layer, or as its last if it has fewer."""
        if picture is None:
            return "<p>Drop an image to begin.</p>"
        if not other:
            return self.viewer.show(picture, at, name, layer, p_t)
        shown = []
        for each in (name, other):
            title = f'<div class="tmt-model">{escape(self.viewer.checkpoints[each].title)}</div>'
            shown.append(title + self.viewer.show(picture, at, each, min(layer, self.viewer.layers(each) - 1), p_t))
        return "".join(shown)

    def upload(self, file: Mapping[str, Any]) -> tuple[None, Any, Any]:
        """Nothing goes back into the drop zone: it is ready for the next image."""
        path = Path(file["path"]).resolve()
        if not path.is_relative_to(self.uploads.resolve()):
            raise gradio.Error("this file was not uploaded here", print_exception=False)
        try:
            return None, read_upload(path), CENTRE
        except UserError as error:
            gradio.Warning(escape(str(error), quote=False))
            return None, gradio.skip(), gradio.skip()
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # Gradio's folder of this one file, unless the same file is coming in again
                path.parent.rmdir()

    def click(self, event: gradio.EventData) -> tuple[float, float]:
        x, y = (min(max(float(value), 0.0), 1.0) for value in (event.x, event.y))
        return x, y

    def example(self, event: gradio.EventData) -> tuple[np.ndarray, tuple[float, float]]:
        return self.pictures[int(event.index)], CENTRE

    def checkpoint(self, name: str, layer: int) -> tuple[Any, Any]:
        """The choice of layers and p_T that the model has; the chosen layer stays where it has that."""
        layers, p_t = self.viewer.layers(name), self.viewer.p_t(name)
        return (
            gradio.Radio(choices=self.layer_choices(name), value=min(layer, layers - 1)),
            gradio.Slider(value=p_t or 0, interactive=p_t is not None),
        )

    def layer_choices(self, name: str) -> list[tuple[str, int]]:
        return [(str(layer), layer) for layer in range(self.viewer.layers(name))]
