"""Pairs, one or many at once: sources x targets x methods x seeds x label fractions, and sweeps.

``plan`` reads the matrix file, ``units`` makes stages of it, each with a folder of its own, ``running`` runs what is
missing (``slurm``: as jobs), ``progress`` says what became of it and ``estimate`` what it will take. ``records`` are
written last, so a run may be killed at any moment and the same command goes on. Source models and estimators are units
that others share. There is no scheduler here, only an order. ``pair`` is a plan with one cell, and its table.
"""
