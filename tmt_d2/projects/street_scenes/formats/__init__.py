"""The on-disk formats of the five data sets, one a file."""

from __future__ import annotations

from tmt_d2.projects.street_scenes.formats.base import Format, Frame
from tmt_d2.projects.street_scenes.formats.bdd100k import Bdd100k
from tmt_d2.projects.street_scenes.formats.cityscapes import Cityscapes
from tmt_d2.projects.street_scenes.formats.gtav import Gtav
from tmt_d2.projects.street_scenes.formats.mapillary import Mapillary
from tmt_d2.projects.street_scenes.formats.synthia import Synthia

FORMATS: dict[str, Format] = {
    "cityscapes": Cityscapes(), "bdd100k": Bdd100k(), "mapillary": Mapillary(), "gtav": Gtav(), "synthia": Synthia(),
}  # fmt: skip

__all__ = ["FORMATS", "Format", "Frame"]
