"""``python -m datasets.check`` in a checkout; see tmt_d2/cli/check_data.py."""

from tmt_d2.cli.check_data import command

if __name__ == "__main__":
    command()
