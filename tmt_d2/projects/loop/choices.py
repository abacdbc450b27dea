"""Names that the command needs before it imports a model."""

from __future__ import annotations

PURPOSES, TOOLS = ("train", "test"), ("cvat", "label-studio", "files")
NO_MODEL = "none"
PROJECT, CONFIG = "project.yaml", "config.yaml"
