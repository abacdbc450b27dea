"""Hooks of the trainer."""
