"""``python -m datasets.check`` and ``python -m datasets.render`` in a checkout."""
