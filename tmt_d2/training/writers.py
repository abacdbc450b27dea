"""Where the numbers of a run go: the screen, ``metrics.json``, TensorBoard."""

from __future__ import annotations

import json
import os
from typing import Any

from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

from tmt_d2.files import finite


def build_writers(folder: str, max_iter: int) -> list[EventWriter]:
    """Detectron2's default writers, but with strict JSON."""
    os.makedirs(folder, exist_ok=True)
    return [
        CommonMetricPrinter(max_iter),
        StrictJSONWriter(os.path.join(folder, "metrics.json")),
        TensorboardXWriter(folder),
    ]


class StrictJSONWriter(JSONWriter):
    """Detectron2's, but what is not finite is null: JSON has no NaN, and jq or a browser stop at one."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        super().__init__(json_file, window_size)
        self._file_handle: Any = _Strict(self._file_handle)


class _Strict:
    """A file into which lines of JSON are written."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(json.dumps(finite(json.loads(line)), allow_nan=False) + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
