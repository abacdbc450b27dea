"""``python -m datasets.render`` in a checkout; see tmt_d2/projects/street_scenes/command.py."""

from tmt_d2.projects.street_scenes.command import command

if __name__ == "__main__":
    command()
