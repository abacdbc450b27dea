#!/usr/bin/env python
"""Of a checkout: tmt_d2/cli/train.py."""

from tmt_d2.cli.train import command

if __name__ == "__main__":
    command()
