"""Import of the annotations in Label Studio's webhook events into a project of ``tmt-adapt``.

An annotation is kept in a folder of the project, as a JSON export of Label Studio, until it is imported: it waits while
a training holds the project, and is still there after the backend was killed.

``annotation`` is as documented by Label Studio (labelstud.io/guide/webhook_reference): as in the export, with the id of
its task. Its server (webhooks/models.py) adds ``task``. Both are lists in an event about several annotations.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmt_d2.data.image_lists import first_names
from tmt_d2.errors import USER_ERRORS, UserError, one_line
from tmt_d2.projects.annotation.labels import LabelNames
from tmt_d2.projects.loop.project import Project
from tmt_d2.projects.loop.training import import_export
from tmt_d2.utils.files import atomic_write
from tmt_d2.utils.lock import folder_lock

logger = logging.getLogger(__name__)

FOLDER, REFUSED = "label_studio", ".refused"
CREATED, UPDATED = "created", "updated"  # an update replaces the label file
EVENTS = {"ANNOTATION_CREATED": CREATED, "ANNOTATIONS_CREATED": CREATED, "ANNOTATION_UPDATED": UPDATED}
Json = dict[str, Any]


class Inbox:
    """Annotations of a project that wait to be imported, one file for each task: no bad one keeps others back."""

    def __init__(self, project: str, mapping: Mapping[str, str] | None = None) -> None:
        """
        Args:
            mapping: label in Label Studio -> class name or ``ignore``.

        Raises:
            UserError: the folder is no project, or ``mapping`` names an unknown class.
        """
        LabelNames(Project(project).classes().by_name(), mapping)
        self._project, self._mapping, self._folder = project, mapping, Path(project, FOLDER)

    def put(self, event: Json) -> None:
        """Keep the annotations of an event, if it is about annotations.

        Raises:
            UserError: it does not carry them.
        """
        if kind := EVENTS.get(str(event.get("action"))):
            tasks, now = tasks_of(event), time.time_ns()
            self._folder.mkdir(exist_ok=True)
            for number, task in enumerate(tasks):
                with atomic_write(self._folder / f"{now}-{number:06d}-{kind}.json", "w") as file:
                    json.dump([task], file)

    def waiting(self) -> list[Path]:
        """Return the files of annotations that are not imported yet."""
        return sorted(self._folder.glob("*.json"))

    def import_all(self) -> tuple[int, list[str]]:
        """Import what waits as ``tmt-adapt import`` does; what is refused stays as a file that ends in ``REFUSED``.

        Returns:
            number of label files that were written, and a line for each task.
        """
        try:
            project = Project(self._project)
            with folder_lock(project.folder, "--project"):
                project.refresh()  # no annotation is refused because images are offline
                outcomes = [self._import(project, file) for file in self.waiting()]
        except USER_ERRORS as error:  # or another command holds the project
            line = f"annotations of {len(self.waiting())} tasks wait: {one_line(error)}"
            logger.warning(line)
            return 0, [line]
        return sum(written for written, _ in outcomes), [line for _, line in outcomes]

    def _import(self, project: Project, file: Path) -> tuple[int, str]:
        name = f"task {first_names([str(task['id']) for task in json.loads(file.read_bytes())])}"
        try:
            report = import_export(project, str(file), mapping=self._mapping, replace=UPDATED in file.name)
        except USER_ERRORS as error:
            if isinstance(error, UserError):
                file.rename(file.with_suffix(REFUSED))
            line = f"{name} is not imported: {one_line(error).removeprefix(f'{file}: ')}"
            logger.error(line)
            return 0, line
        file.unlink()
        report.names["missing"] = []
        line = f"{name}: " + "; ".join(each.strip() for each in report.lines())
        logger.info(line)
        return len(report.names["written"]), line


def tasks_of(event: Json) -> list[Json]:
    """Return the annotations of an event as in a JSON export: tasks, each with its ``annotations``.

    Raises:
        UserError: it carries no annotation with its task.
    """
    try:
        tasks = {task["id"]: {**task, "annotations": []} for task in _listed(event["task"])}
        for annotation in _listed(event["annotation"]):
            tasks[annotation["task"]]["annotations"].append(annotation)
    except (LookupError, TypeError) as error:
        hint = "let the webhook of Label Studio send its payload"
        raise UserError("is missing in the event, or its task is", key="annotation", hint=hint) from error
    return list(tasks.values())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
