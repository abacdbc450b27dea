"""Of a checkout: tmt_d2/datasets/render.py."""

from tmt_d2.datasets.render import command

if __name__ == "__main__":
    command()
