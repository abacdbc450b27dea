"""Choices of options that commands offer before they import a model."""

from __future__ import annotations

KINDS = ("labels", "overlays", "confidence", "transferability")  # each is a folder of PNG files
FORMATS = ("onnx", "pt2")  # of an exported model
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}  # suffixes that are read frame by frame
