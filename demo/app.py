#!/usr/bin/env python
"""Command of a checkout, see tmt_d2/projects/viewer/command.py."""

from tmt_d2.projects.viewer.command import command

if __name__ == "__main__":
    command()
