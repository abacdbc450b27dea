"""Of a checkout: tmt_d2/datasets/check.py."""

from tmt_d2.datasets.check import command

if __name__ == "__main__":
    command()
