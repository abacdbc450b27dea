"""One folder that leads from images to a model of a new city: propose, label, train, measure."""

from typing import TYPE_CHECKING

from tmt_d2.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from tmt_d2.projects.loop.project import Project
    from tmt_d2.projects.loop.proposing import propose
    from tmt_d2.projects.loop.starting import adapt, start
    from tmt_d2.projects.loop.state import status
    from tmt_d2.projects.loop.training import import_export, train
else:
    __getattr__ = lazy_exports(
        __name__,
        project="Project",
        starting="adapt start",
        proposing="propose",
        state="status",
        training="import_export train",
    )

__all__ = ["Project", "adapt", "import_export", "propose", "start", "status", "train"]
