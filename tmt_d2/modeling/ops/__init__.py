"""Operators: deformable attention, linear layers, position encoding, resizing."""
