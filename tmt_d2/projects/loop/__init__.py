"""One folder that leads from images to a model of a new city: propose, label, train, measure."""

from tmt_d2.projects.loop.project import Project, start
from tmt_d2.projects.loop.proposing import propose
from tmt_d2.projects.loop.status import status
from tmt_d2.projects.loop.training import import_export, train

__all__ = ["Project", "import_export", "propose", "start", "status", "train"]
