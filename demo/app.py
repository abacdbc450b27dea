#!/usr/bin/env python
"""Of a checkout: tmt_d2/commands/app.py."""

from tmt_d2.commands.app import command

if __name__ == "__main__":
    command()
