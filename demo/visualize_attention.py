#!/usr/bin/env python
"""Of a checkout: tmt_d2/cli/show_attention.py."""

from tmt_d2.cli.show_attention import command

if __name__ == "__main__":
    command()
