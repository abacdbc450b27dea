#!/usr/bin/env python
"""Of a checkout: tmt_d2/cli/score.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from tmt_d2.cli.score import command

if __name__ == "__main__":
    command()
