"""Choices of options that the command offers before it imports a model."""

from __future__ import annotations

MASKS, POLYGONS = SEGMENTATIONS = ("masks", "polygons")
