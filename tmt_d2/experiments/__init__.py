"""Pairs, one or many: sources x targets x methods x seeds x amounts of labels, and sweeps.

``plan`` reads the matrix file, ``units`` turns it into trainings and evaluations, each with its own folder, ``running``
runs the units that are missing, ``progress`` shows their state and the time left, ``results`` reads what they measured,
``statistics`` compares it. A unit is recorded at its end, so a run may be killed at any moment and resumed by the same
command.
"""
