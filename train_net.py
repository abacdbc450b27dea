#!/usr/bin/env python
"""Command of a checkout, see tmt_d2/cli/train.py."""

from tmt_d2.cli.train import command

if __name__ == "__main__":
    command()
