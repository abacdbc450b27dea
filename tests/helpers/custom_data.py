"""Small data sets of one's own: the YAML file and the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SPLITS = {"train": {"images": "rgb/{stem}.png", "labels": "ids/{stem}_ids.png"}}


def write(folder: Path, content: object = None, file: str = "town.yaml", **changes: object) -> Path:
    """A right file, with `changes` to its keys; None removes a key."""
    folder.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = {"name": "town", "splits": SPLITS, "train_ids": {7: "road", 8: 1}} | changes
        content = {key: value for key, value in content.items() if value is not None}
    (folder / file).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return folder / file


def save(path: Path, ids: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(ids, np.uint8)).save(path)
