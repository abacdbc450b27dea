"""The on-disk formats of the five data sets, one a file."""

from __future__ import annotations

from datasets.formats.base import Format, Frame
from datasets.formats.bdd100k import Bdd100k
from datasets.formats.cityscapes import Cityscapes
from datasets.formats.gtav import Gtav
from datasets.formats.mapillary import Mapillary
from datasets.formats.synthia import Synthia

FORMATS: dict[str, Format] = {
    "cityscapes": Cityscapes(), "bdd100k": Bdd100k(), "mapillary": Mapillary(), "gtav": Gtav(), "synthia": Synthia(),
}  # fmt: skip

__all__ = ["FORMATS", "Format", "Frame"]
