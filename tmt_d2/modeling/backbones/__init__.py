"""Backbones under Detectron2's interface."""
