"""``python -m datasets.check`` and ``python -m datasets.render`` of a checkout: see tmt_d2/datasets."""
