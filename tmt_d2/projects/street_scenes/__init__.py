"""Synthetic street scenes in the formats of the five data sets. See README.md."""
