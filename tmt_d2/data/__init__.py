"""Label spaces, registration, reading and batches. Importing it puts the data sets into Detectron2's catalogs."""

from __future__ import annotations

from tmt_d2.data.registration import register_all

register_all()
