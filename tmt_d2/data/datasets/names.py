"""Names and folder of the data sets, and the size of a quick check: all that --help shows of them."""

from __future__ import annotations

import os

FAMILIES = ("cityscapes", "bdd100k", "mapillary", "gtav", "synthia")
QUICK_SAMPLE = 20  # images of a split that a quick check reads


def dataset_root() -> str:
    """Return the folder of the data sets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
