"""Label spaces, registration, reading and batches. Importing it puts the data sets into Detectron2's catalogs."""

from __future__ import annotations

from tmt_d2.data.datasets.custom import register_custom, register_data
from tmt_d2.data.datasets.registration import label_space_of, register_all

__all__ = ["label_space_of", "register_all", "register_custom", "register_data"]

register_all()
