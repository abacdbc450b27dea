#!/usr/bin/env python
"""Command of a checkout, see tmt_d2/projects/loop/command.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from tmt_d2.projects.loop.command import command

if __name__ == "__main__":
    command()
