"""Many pairs at once: sources x targets x methods x seeds x label fractions, and sweeps, from one YAML file.

``plan`` reads the file, ``units`` makes stages of it, each with a folder of its own, ``running`` runs those that are
missing (``slurm``: as jobs), ``progress`` says what became of them and ``estimate`` what they will take. ``stage.json``
in a unit's folder, written last, says that it is done, so a run may be killed at any moment and the same command goes
on. Source models and estimators are units that others share. There is no scheduler here, only an order.
"""
