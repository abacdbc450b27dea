#!/usr/bin/env python
"""Of a checkout: tmt_d2/projects/viewer/command.py."""

from tmt_d2.projects.viewer.command import command

if __name__ == "__main__":
    command()
