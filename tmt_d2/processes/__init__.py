"""Processes around a run: how it is launched, and what a signal does to it."""
