"""Checkpoint files: reading, writing, and matching them to a model."""
