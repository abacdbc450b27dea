"""Serve a model to Label Studio as its ML backend: brush masks with scores, and training in the background.

    tmt-label-studio-backend --project mycity
    tmt-label-studio-backend --config-file config.yaml --weights model_final.pth --images photos

Add http://127.0.0.1:9090 as a model in the settings of a Label Studio project with the labeling interface that
`tmt-adapt propose --tool label-studio` writes. Tasks name images as /data/local-files/?d=PATH, or by their path, below
--images. Nothing outside of that folder is read.

With --project, a folder of tmt-adapt, the newest model predicts. For an image of a round its copy in the round is
predicted, so the root of Label Studio's local storage has to be `images/` of the round. An annotation that is
submitted is imported as by `tmt-adapt import`, and starts `tmt-adapt train`, as "Start training" does, if none runs.
What is submitted during a training is imported when it has ended, and starts the next one. The model is replaced when
a training has ended well, and stays otherwise. A new annotation keeps a label that exists, an updated one replaces it.
Switch on "Start model training on annotation submission" in Label Studio, or no annotation is sent.

Nobody has to log in: leave --host at this machine, or protect the port.

Requests and answers: labelstud.io/guide/ml_create, guide/predictions, guide/webhook_reference.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qs, urlsplit

from tmt_d2.cli.common import check_file, run
from tmt_d2.errors import USER_ERRORS, UserError, one_line
from tmt_d2.projects.loop.choices import PROJECT
from tmt_d2.utils.ports import check_port

if TYPE_CHECKING:
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.projects.annotation.label_studio_events import Inbox
    from tmt_d2.projects.loop.project import Project

logger = logging.getLogger(__name__)

START = "START_TRAINING"
MAX_BODY = 64 * 2**20  # bytes of a request
Json = dict[str, Any]


def local_file(root: Path, reference: object) -> Path:
    """Return the file below ``root`` that a task names: /data/local-files/?d=PATH, or a path.

    Raises:
        UserError: it is not below ``root``, links resolved, or there is no such file.
    """
    with suppress(OSError, ValueError, LookupError, RuntimeError):  # such as a null byte, a loop of links
        parts = urlsplit(str(reference))
        name = parse_qs(parts.query)["d"][0] if parts.path == "/data/local-files/" else str(reference)
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path
    raise UserError("there is no such file below --images", key="image", value=reference)


def shown_files(project: Project, root: Path) -> dict[Path, Path | None]:
    """Return image -> its copy in a round, which Label Studio shows; None for images that are measured on.

    A prediction for the latter would favor the model.

    Args:
        root: folder of the images, or of a copy of them.
    """
    files: dict[str, Path | None] = {**project.copies(), **dict.fromkeys(project.test())}
    return {Path(place, name).resolve(): file for name, file in files.items() for place in (project.place, root)}


class BackgroundTraining:
    """The command ``words``, at most once at a time; ``ended`` is called in a thread with the exit status of each."""

    def __init__(self, words: Sequence[str], ended: Callable[[int], None]) -> None:
        self.words, self._ended = list(words), ended
        self._lock, self._stopped = threading.Lock(), False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the command, unless it runs or was stopped."""
        with self._lock:
            if not self.is_running and not self._stopped:
                self._process = process = subprocess.Popen(self.words)
                self._thread = threading.Thread(target=lambda: self._ended(process.wait()), daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ask the command to stop, if it runs, and wait for it; a training saves its state first."""
        with self._lock:
            self._stopped = True
        if self._process is not None and self._thread is not None:
            self._process.terminate()
            self._thread.join()


class Backend:
    """Answers to Label Studio's requests.

    Args:
        load: returns the newest predictor and its version, or None.
        root: folder of the images.
        inbox: imports annotations; None: none is imported, and no training started.
        words: command of a training.
        shown: returns image -> file that is predicted in its place; None: nothing is predicted.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Predictor, str] | None],
        root: Path,
        inbox: Inbox | None = None,
        words: Sequence[str] = (),
        shown: Callable[[], Mapping[Path, Path | None]] = dict,
    ) -> None:
        self._load, self._root, self._inbox, self._shown = load, root, inbox, shown
        self._predicting, self._importing = threading.Lock(), threading.Lock()
        self.model = load()
        self.training = BackgroundTraining(words, self.ended)
        self.routes: dict[tuple[str, str], Callable[[Json], Json]] = {
            ("GET", "/health"): self.health,
            ("POST", "/setup"): self.setup,
            ("POST", "/predict"): self.predict,
            ("POST", "/webhook"): self.webhook,
        }

    def ended(self, status: int) -> None:
        """Replace the model after a training that ended well, and import what was annotated meanwhile."""
        if status:
            logger.error("the training ended with status %d: the model stays as it is", status)
        else:
            self.reload()
        self.import_waiting()

    def reload(self) -> None:
        """Replace the model with the newest one, or keep it where that cannot be loaded."""
        try:
            self.model = self._load() or self.model
        except USER_ERRORS as error:
            logger.error("the new model cannot be loaded, the last one stays: %s", one_line(error))

    def import_waiting(self) -> list[str]:
        """Import the annotations that wait, start a training if labels have changed, and return lines about them."""
        if self._inbox is None or not (count := len(self._inbox.waiting())):
            return []
        with self._importing:
            if self.training.is_running:
                return [f"annotations of {count} tasks wait for the end of the training"]
            written, lines = self._inbox.import_all()
            if written:
                self.training.start()
        return lines

    def health(self, request: Json) -> Json:
        return {"status": "UP", "model_class": "tmt_d2"}

    def setup(self, request: Json) -> Json:
        return {"model_version": self.model[1] if self.model else ""}

    def predict(self, request: Json) -> Json:
        """Predict the images of ``tasks``: one brush region for each class; nothing for a test image."""
        if self.model is None:
            raise UserError("there is no model yet", hint="label images and train")
        predictor, version = self.model
        try:
            references = [task["data"]["image"] for task in request["tasks"]]
        except (LookupError, TypeError) as error:
            raise UserError("is no list of tasks with data.image", key="tasks") from error
        images, shown = [local_file(self._root, reference) for reference in references], self._shown()
        files = [shown.get(image, image) for image in images]
        with self._predicting:
            results = [_prediction(predictor, file) if file else {"result": []} for file in files]
        return {"results": [each | {"model_version": version} for each in results], "model_version": version}

    def webhook(self, request: Json) -> Json:
        """Import the annotation of an event; start a training if labels have changed, or if the event asks for it."""
        if self._inbox is None:
            return {"training": "no"}
        self._inbox.put(request)
        lines = self.import_waiting()
        if request.get("action") == START:
            self.training.start()
        return {"labels": lines, "training": "running" if self.training.is_running else "no"}


def _prediction(predictor: Predictor, file: Path) -> Json:
    from tmt_d2.data.reader import read_image
    from tmt_d2.projects.annotation.writers import brush_region

    prediction = predictor(read_image(str(file), oriented=True))  # as a browser shows it
    labels, confidence = prediction.labels.numpy(), prediction.confidence().numpy()
    regions = []
    for index in prediction.labels.unique().tolist():
        score = round(float(confidence[labels == index].mean()), 4)
        regions.append(brush_region(labels, index, predictor.classes.names[index]) | {"score": score})
    return {"result": regions, "score": round(float(confidence.mean()), 4)}


class BackendServer(ThreadingHTTPServer):
    """HTTP server of a backend; port 0 takes a free one."""

    def __init__(self, address: tuple[str, int], backend: Backend) -> None:
        super().__init__(address, _Handler)
        self.backend = backend


class _Handler(BaseHTTPRequestHandler):
    server: BackendServer
    timeout = 60  # seconds without a byte

    def do_GET(self) -> None:
        self._respond({})

    def do_POST(self) -> None:
        length, request = self.headers.get("Content-Length", ""), None
        # A page in a browser cannot send this type unasked.
        if length.isdecimal() and int(length) <= MAX_BODY and self.headers.get_content_type() == "application/json":
            with suppress(ValueError, RecursionError):
                request = json.loads(self.rfile.read(int(length)))
        if isinstance(request, dict):
            self._respond(request)
        else:
            self._send(400, {"error": f"the body is no application/json object of up to {MAX_BODY} bytes"})

    def _respond(self, request: Json) -> None:
        routes, place = self.server.backend.routes, (self.command, urlsplit(self.path).path)
        try:
            status, answer = (200, routes[place](request)) if place in routes else (404, {"error": "no such route"})
        except USER_ERRORS as error:
            status, answer = 400, {"error": one_line(error)}
            logger.error("%s: %s", self.path, answer["error"])
        except Exception:
            logger.exception("%s %s", self.command, self.path)
            status, answer = 500, {"error": "unexpected, see the log of the backend"}
        self._send(status, answer)

    def _send(self, status: int, answer: Json) -> None:
        with suppress(ConnectionError):  # Label Studio waits for a second for the answer to an event
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *values: Any) -> None:
        logger.debug(format, *values)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, model = arguments.add_argument, arguments.add_mutually_exclusive_group(required=True)
    model.add_argument("--project", default="", metavar="FOLDER", help="a project of tmt-adapt")
    model.add_argument("--config-file", default="", metavar="FILE", help="config of a model; needs --images")
    add("--weights", default="", metavar="FILE", help="checkpoint of --config-file; default: MODEL.WEIGHTS")
    add("--images", default="", metavar="FOLDER", help="folder of the images; default: that of --project")
    add("--map", nargs="+", default=[], metavar="LABEL=CLASS", help="with --project: class, or ignore, of other labels")
    add("--host", default="127.0.0.1", help="default: %(default)s, this machine only; 0.0.0.0: any machine")
    add("--port", type=int, default=9090, help="default: %(default)s")
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    check_port("--port", args.port, str(args.port))
    project_file = str(Path(args.project, PROJECT)) if args.project else ""
    for option, file in (("project", project_file), ("config-file", args.config_file), ("weights", args.weights)):
        check_file(f"--{option}", file)
    if (args.config_file or args.images) and not (args.images and Path(args.images).is_dir()):
        raise UserError("is no folder", key="--images", value=args.images)
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.projects.annotation.label_studio_events import Inbox
    from tmt_d2.projects.annotation.labels import read_mapping
    from tmt_d2.projects.loop.project import Project
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()

    def load() -> tuple[Predictor, str] | None:
        if args.config_file:
            return Predictor.from_config(args.config_file, args.weights), Path(args.weights or args.config_file).stem
        project = Project(args.project)
        model = project.newest_model()
        return (project.predictor(model), f"model {model.number:02d}") if model else None

    root = Path(args.images or Project(args.project).place)
    words = [sys.executable, "-m", "tmt_d2.projects.loop.command", "train", "--project", args.project]
    if args.project:
        inbox = Inbox(args.project, read_mapping(args.map))
        backend = Backend(load, root, inbox, words, lambda: shown_files(Project(args.project), root))
    else:
        backend = Backend(load, root)
    with BackendServer((args.host, args.port), backend) as server:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # of a service manager: as Ctrl-C
        print(f"serving http://{args.host}:{args.port}", flush=True)
        try:
            backend.import_waiting()
            server.serve_forever()
        finally:
            backend.training.stop()


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
