"""The on-disk formats of the five data sets, one a file."""

from __future__ import annotations

from tmt_d2.datasets.formats.base import Format, Frame
from tmt_d2.datasets.formats.bdd100k import Bdd100k
from tmt_d2.datasets.formats.cityscapes import Cityscapes
from tmt_d2.datasets.formats.gtav import Gtav
from tmt_d2.datasets.formats.mapillary import Mapillary
from tmt_d2.datasets.formats.synthia import Synthia

FORMATS: dict[str, Format] = {
    "cityscapes": Cityscapes(), "bdd100k": Bdd100k(), "mapillary": Mapillary(), "gtav": Gtav(), "synthia": Synthia(),
}  # fmt: skip

__all__ = ["FORMATS", "Format", "Frame"]
