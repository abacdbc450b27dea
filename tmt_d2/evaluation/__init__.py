"""Metrics, and inference beyond one forward pass."""
