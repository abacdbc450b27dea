#!/usr/bin/env python
"""Of a checkout: tmt_d2/commands/train.py."""

from tmt_d2.commands.train import command

if __name__ == "__main__":
    command()
