#!/usr/bin/env python
"""Command of a checkout, see tmt_d2/cli/show_attention.py."""

from tmt_d2.cli.show_attention import command

if __name__ == "__main__":
    command()
