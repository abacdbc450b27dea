"""Real requests to the backend for Label Studio, on a free port."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.checkout import TINY_CONFIG, environment
from tests.helpers.errors import refuses
from tests.helpers.small_runs import exif, options
from tests.projects.annotation.exports import region
from tmt_d2.data.reader import read_image
from tmt_d2.errors import INTERRUPTED
from tmt_d2.inference import Predictor
from tmt_d2.projects.annotation.brush import decode_brush, encode_brush
from tmt_d2.projects.annotation.label_studio_backend import Backend, BackendServer, local_file, shown_files
from tmt_d2.projects.annotation.label_studio_events import FOLDER, REFUSED, Inbox
from tmt_d2.projects.loop.project import Project
from tmt_d2.projects.loop.proposing import propose
from tmt_d2.projects.loop.starting import start
from tmt_d2.utils.lock import LOCK, folder_lock

pytestmark = pytest.mark.slow

Request = Callable[..., tuple[int, dict[str, Any]]]
SIZE = (45, 70)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images, in a folder with a space in its name, and one beside the folder of the images."""
    folder = tmp_path / "photos"
    (folder / "by day").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    for path in (folder / "by day" / "a.png", folder / "by day" / "b.png", tmp_path / "secret.png"):
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def city(photos: Path, tmp_path: Path) -> Project:
    """A project without a model, of classes 0 road and 1 sky."""
    (tmp_path / "classes.yaml").write_text("[road, sky]")
    values = {"classes": str(tmp_path / "classes.yaml"), "opts": options(SOLVER__MAX_ITER=1)}
    return start(tmp_path / "city", str(photos), str(TINY_CONFIG), "none", **values)


class Training:
    """A pretended training: it writes a letter, and reads its exit status from a pipe."""

    def __init__(self, folder: Path) -> None:
        self._started, self._end = folder / "started", folder / "end"
        os.mkfifo(self._end)
        script = f"open({str(self._started)!r}, 'a').write('x'); sys.exit(int(open({str(self._end)!r}).read()))"
        self.words = [sys.executable, "-c", f"import sys; {script}"]

    def end(self, backend: Backend, status: int) -> None:
        thread = backend.training._thread
        self._end.write_text(str(status))  # waits for the reader
        assert thread
        thread.join()

    def count(self) -> int:
        """Return the number of trainings of which the last has ended."""
        return len(self._started.read_text()) if self._started.exists() else 0


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture
def backend(photos: Path, model_files: Path, city: Project, training: Training) -> Iterator[Backend]:
    """Each load has a new version."""
    predictor = Predictor.from_config(str(model_files / "tmt.yaml"), str(model_files / "tmt.pth"))
    versions = iter(("first", "second", "third"))
    inbox = Inbox(str(city.folder), {"street": "road"})
    backend = Backend(lambda: (predictor, next(versions)), photos, inbox, training.words)
    yield backend
    backend.training.stop()


@pytest.fixture
def server(backend: Backend) -> Iterator[BackendServer]:
    with BackendServer(("127.0.0.1", 0), backend) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def request_of(server: BackendServer) -> Request:
    """request_of(route, body) -> status and answer of a POST; of a GET without a body."""

    def send(route: str, body: Any = None, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
        return send_to(server.server_port, route, body, kind)

    return send


def send_to(port: int, route: str, body: Any = None, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", route, data, {"Content-Type": kind})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def tasks(*references: object) -> dict[str, Any]:
    """A request of Label Studio's ``make_predictions``."""
    listed = [{"id": index, "data": {"image": each}} for index, each in enumerate(references)]
    return {"tasks": listed, "project": "1.5", "label_config": "<View/>", "params": {"context": None}}


def test_predicted_regions_are_the_labels(request_of: Request, backend: Backend, photos: Path) -> None:
    references = [f"/data/local-files/?d={quote('by day/a.png')}", "by day/a.png", str(photos / "by day" / "a.png")]
    status, answer = request_of("/predict", tasks(*references))
    assert status == 200 and answer["model_version"] == "first" and len(answer["results"]) == 3
    assert backend.model
    predictor = backend.model[0]
    prediction = predictor(photos / "by day" / "a.png")
    confidence = prediction.confidence().numpy()
    for result in answer["results"]:
        labels = np.full((45, 70), 255, np.uint8)
        for each in result["result"]:
            assert (each["type"], each["from_name"], each["to_name"]) == ("brushlabels", "label", "image")
            assert (each["original_width"], each["original_height"]) == (70, 45)
            mask = decode_brush(each["value"]["rle"], (45, 70))
            (name,) = each["value"]["brushlabels"]
            labels[mask] = predictor.classes.names.index(name)
            assert each["score"] == pytest.approx(confidence[mask].mean(), abs=1e-4)
        assert np.array_equal(labels, prediction.labels.numpy())
        assert result["score"] == pytest.approx(confidence.mean(), abs=1e-4)


def test_regions_lie_on_the_image_as_a_browser_shows_it(
    request_of: Request, backend: Backend, photos: Path, tmp_path: Path
) -> None:
    with Image.open(photos / "by day" / "a.png") as image:
        image.save(photos / "turned.png", exif=exif(6))
        image.rotate(-90, expand=True).save(tmp_path / "upright.png")
    results = request_of("/predict", tasks("turned.png"))[1]["results"]
    assert backend.model
    labels = backend.model[0](tmp_path / "upright.png").labels.numpy()
    assert labels.shape == SIZE[::-1] and results[0]["result"]
    for each in results[0]["result"]:
        assert (each["original_height"], each["original_width"]) == labels.shape
        index = backend.model[0].classes.names.index(each["value"]["brushlabels"][0])
        assert np.array_equal(decode_brush(each["value"]["rle"], labels.shape), labels == index)


class BrightIsSky:
    """A pretended predictor."""

    classes = SimpleNamespace(names=("road", "sky"))

    def __call__(self, image: np.ndarray) -> Any:
        labels = torch.from_numpy(image[..., 0] > 127).byte()
        return SimpleNamespace(labels=labels, confidence=lambda: torch.ones(labels.shape))


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_accepted_prediction_is_the_label_of_the_stored_image(
    city: Project, photos: Path, training: Training, orientation: int
) -> None:
    """Label Studio shows the copy in the round; an image that is in no round is predicted as a browser shows it."""
    for file in (photos / "by day").iterdir():
        with Image.open(file) as image:
            image.save(file, exif=exif(orientation))
    folder = propose(city, 1, "label-studio")
    (name,) = city.proposed(folder)
    (task,) = json.loads((folder / "label-studio" / "tasks.json").read_text())
    (other,) = set(city.files) - {name}
    model: Any = BrightIsSky()
    inbox, shown = Inbox(str(city.folder)), partial(shown_files, city, photos)
    backend = Backend(lambda: (model, ""), photos, inbox, training.words, shown)
    accepted, outside = backend.predict({"tasks": [task, *tasks(other)["tasks"]]})["results"]
    sent = event("ANNOTATION_CREATED", name, labels_of(1))
    sent["annotation"]["result"] = accepted["result"]
    assert backend.webhook(sent)["training"] == "running"
    backend.training.stop()
    assert np.array_equal(label(city, name), read_image(city.files[name])[..., 0] > 127)
    size = {(each["original_height"], each["original_width"]) for each in outside["result"]}
    assert size == {SIZE if orientation == 3 else SIZE[::-1]}


def test_nothing_outside_of_the_folder_is_read(request_of: Request, photos: Path) -> None:
    (photos / "link.png").symlink_to(photos.parent / "secret.png")
    (photos / "loop.png").symlink_to(photos / "loop.png")
    outside = str(photos.parent / "secret.png")
    names = ["../secret.png", "by day/../../secret.png", outside, "link.png", "loop.png", "a\0.png", "x" * 5000, ""]
    for name in names:
        for reference in (name, f"/data/local-files/?d={quote(name)}"):
            with refuses("image", reference):
                local_file(photos, reference)
            assert request_of("/predict", tasks(reference))[0] == 400
    for reference in (f"file://{outside}", "/data/local-files/", "http://127.0.0.1/a.png", None, 3):
        assert request_of("/predict", tasks(reference))[0] == 400
    assert local_file(photos, "by day/a.png") == photos / "by day" / "a.png"  # control


def test_mistakes_do_not_end_the_server(request_of: Request, backend: Backend, photos: Path) -> None:
    assert request_of("/nothing")[0] == request_of("/predict")[0] == request_of("/train", {})[0] == 404
    for body in (b"{", b"\xff", b"[" * 100_000, [], 3, b""):
        assert request_of("/predict", body)[0] == 400
    for body in ({}, {"tasks": None}, {"tasks": [3]}, {"tasks": [{"data": {}}]}):
        assert request_of("/predict", body)[0] == 400
    assert request_of("/webhook", {"action": "START_TRAINING"}, "text/plain")[0] == 400  # from a page in a browser
    (photos / "no.png").write_text("no image")
    assert request_of("/predict", tasks("no.png"))[0] == 400
    backend.model = None
    assert request_of("/predict", tasks("by day/a.png"))[0] == 400
    assert request_of("/setup", {"project": "1.5", "schema": "<View/>"}) == (200, {"model_version": ""})
    assert request_of("/health")[1]["status"] == "UP"


def event(action: str, image: str, labels: np.ndarray, names: Sequence[str] = ("road", "sky")) -> dict[str, Any]:
    """An event as Label Studio's serializers send it, about an annotation that covers labels 0 and 1."""
    result = [
        region("brushlabels", name, {"format": "rle", "rle": encode_brush(labels == index)}, labels.shape)
        for index, name in enumerate(names)
    ]
    annotation = {"id": 17, "task": 19, "was_cancelled": False, "result": result, "updated_at": "2026-01-01T10:00:00Z"}
    content = {"id": 19, "data": {"image": f"/data/local-files/?d={quote(image)}"}, "file_upload": None, "meta": {}}
    return {"action": action, "annotation": annotation, "task": content, "project": {"id": 2, "title": "New"}}


def labels_of(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 1, 255], np.uint8), size)


def label(city: Project, name: str) -> np.ndarray:
    return np.asarray(Image.open(city.label_of(name)))


def test_an_annotation_is_imported_and_trained_on(
    request_of: Request, backend: Backend, city: Project, training: Training
) -> None:
    status, answer = request_of("/webhook", event("ANNOTATION_CREATED", "by day/a.png", labels_of(1)))
    assert (status, answer["training"]) == (200, "running") and len(answer["labels"]) == 1
    assert np.array_equal(label(city, "by day/a.png"), labels_of(1)) and city.labeled() == ["by day/a.png"]
    # What comes during the training waits for its end, and is trained on next.
    update = event("ANNOTATION_UPDATED", "by day/a.png", labels_of(2), ("street", "SKY"))
    for each in (event("ANNOTATION_CREATED", "by day/b.png", labels_of(3)), update):
        assert request_of("/webhook", each)[1]["training"] == "running"
    assert np.array_equal(label(city, "by day/a.png"), labels_of(1)) and not city.label_of("by day/b.png").exists()
    training.end(backend, 0)
    assert np.array_equal(label(city, "by day/a.png"), labels_of(2))
    assert np.array_equal(label(city, "by day/b.png"), labels_of(3))
    assert backend.model and backend.model[1] == "second"
    training.end(backend, 0)
    assert training.count() == 2
    # Equal labels are not trained on again; a label that exists is replaced by an update only.
    for action, seed in (("ANNOTATION_CREATED", 2), ("ANNOTATION_CREATED", 4), ("ANNOTATION_UPDATED", 2)):
        assert request_of("/webhook", event(action, "by day/a.png", labels_of(seed)))[1]["training"] == "no"
    assert np.array_equal(label(city, "by day/a.png"), labels_of(2)) and training.count() == 2


def test_several_annotations_in_one_event(request_of: Request, city: Project) -> None:
    """One that is refused is kept, and keeps no other back."""
    first, bad, second = (event("ANNOTATIONS_CREATED", f"by day/{name}.png", labels_of(5)) for name in "aab")
    BAD["another label"](bad)
    for number, each in enumerate((bad, second)):
        each["task"]["id"] = each["annotation"]["task"] = 20 + number
    sent = first | {key: [first[key], bad[key], second[key]] for key in ("annotation", "task")}
    status, answer = request_of("/webhook", sent)
    assert (status, answer["training"], len(answer["labels"])) == (200, "running", 3)
    assert city.labeled() == ["by day/a.png", "by day/b.png"]
    assert np.array_equal(label(city, "by day/a.png"), labels_of(5))
    (refused,) = (city.folder / FOLDER).iterdir()
    assert refused.suffix == REFUSED and json.loads(refused.read_text())[0]["id"] == 20


def test_an_annotation_outlives_the_backend(city: Project, photos: Path, training: Training) -> None:
    with folder_lock(city.folder):  # another command
        first = Backend(lambda: None, photos, Inbox(str(city.folder)), training.words)
        answer = first.webhook(event("ANNOTATION_CREATED", "by day/a.png", labels_of(1)))
        assert len(answer["labels"]) == 1 and answer["training"] == "no"
    second = Backend(lambda: None, photos, Inbox(str(city.folder)), training.words)
    assert len(second.import_waiting()) == 1 and second.import_waiting() == []
    second.training.stop()
    assert np.array_equal(label(city, "by day/a.png"), labels_of(1))


def test_an_annotation_waits_for_images_that_are_offline(backend: Backend, city: Project, photos: Path) -> None:
    photos.rename(photos.with_name("disk"))
    photos.mkdir()  # the place where the disk is mounted
    sent = event("ANNOTATION_CREATED", "by day/a.png", labels_of(1))
    for number in (1, 2):
        answer = backend.webhook(sent)
        assert len(answer["labels"]) == 1 and len([*(city.folder / FOLDER).iterdir()]) == number
    photos.rmdir()
    photos.with_name("disk").rename(photos)
    assert len(backend.import_waiting()) == 2 and city.labeled() == ["by day/a.png"]


def without_payload(sent: dict[str, Any]) -> None:
    del sent["annotation"], sent["task"], sent["project"]


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "no payload": without_payload,
    "another task": lambda sent: sent["annotation"].update(task=3),
    "no task": lambda sent: sent.update(task=None),
    "an odd id": lambda sent: sent["task"].update(id=[]),
    "another image": lambda sent: sent["task"]["data"].update(image="c.png"),
    "no image": lambda sent: sent["task"].update(data={}),
    "another label": lambda sent: sent["annotation"]["result"][0]["value"].update(brushlabels=["lamp"]),
    "another size": lambda sent: sent["annotation"]["result"][0].update(original_width=9),
    "damaged run lengths": lambda sent: sent["annotation"]["result"][0]["value"].update(rle=[1, 2]),
    "no regions": lambda sent: sent["annotation"].update(result=[]),
    "a wrong result": lambda sent: sent["annotation"].update(result=None),
    "skipped": lambda sent: sent["annotation"].update(was_cancelled=True),
}


def test_bad_annotations_change_nothing(
    request_of: Request, city: Project, training: Training, caplog: pytest.LogCaptureFixture
) -> None:
    def files() -> set[Path]:
        found = (path for path in city.folder.rglob("*") if path.is_file() and path.name != LOCK)
        return {path for path in found if path.suffix != REFUSED}

    city.refresh()
    before = files()
    for kind, spoil in BAD.items():
        caplog.clear()
        sent = event("ANNOTATION_CREATED", "by day/a.png", labels_of(1))
        spoil(sent)
        status, answer = request_of("/webhook", sent)
        assert status == 400 or (len(answer["labels"]) == 1 and answer["training"] == "no"), kind
        assert [record.levelname for record in caplog.records] == ["ERROR"], kind
        assert "\n" not in caplog.messages[0] and str(city.folder) not in caplog.messages[0], kind
    assert files() == before and training.count() == 0
    good = event("ANNOTATION_CREATED", "by day/a.png", labels_of(1))
    assert request_of("/webhook", good)[1]["training"] == "running"  # control
    with refuses("--map", "street=rode"):
        Inbox(str(city.folder), {"street": "rode"})


def test_one_training_at_a_time(request_of: Request, backend: Backend, training: Training) -> None:
    assert request_of("/webhook", {"action": "PROJECT_UPDATED"})[1]["training"] == "no"
    for _ in range(3):
        assert request_of("/webhook", {"action": "START_TRAINING", "project": {"id": 1}})[1]["training"] == "running"
    assert backend.model and backend.model[1] == "first"
    training.end(backend, 0)
    assert training.count() == 1 and backend.model[1] == "second"
    assert request_of("/webhook", {"action": "START_TRAINING"})[1]["training"] == "running"
    training.end(backend, 2)
    assert training.count() == 2 and backend.model[1] == "second"  # a training that failed changes nothing
    backend._load = lambda: Predictor.from_config("nowhere.yaml")
    backend.reload()
    assert backend.model[1] == "second"  # nor does a model that cannot be loaded


def test_nobody_has_to_wait_for_the_answer(
    server: BackendServer, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio waits for a second only."""
    gone, ended, errors = threading.Event(), threading.Event(), list[object]()

    def health(request: dict[str, Any]) -> dict[str, Any]:
        gone.wait()
        return {"text": "x" * 10**7}

    backend.routes["GET", "/health"] = health
    monkeypatch.setattr(server, "handle_error", lambda *request: errors.append(request))
    monkeypatch.setattr(server, "shutdown_request", lambda request: (server.close_request(request), ended.set()))
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
        connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
    gone.set()
    ended.wait()
    assert not errors


def test_the_command_imports_and_trains(city: Project, photos: Path, tmp_path: Path) -> None:
    """A process of the command, and the training that it starts, with a copy of the images. One is a test image."""
    shutil.copytree(photos, tmp_path / "copy")
    (city.folder / "rounds" / "01").mkdir(parents=True)
    (city.folder / "rounds" / "01" / "selected.txt").write_text("by day/b.png\n")
    (city.folder / "rounds" / "01" / "test.csv").write_text("image,round,probability\nby day/b.png,1,0.5\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        "-m",
        "tmt_d2.projects.annotation.label_studio_backend",
        "--project",
        str(city.folder),
        "--images",
        str(tmp_path / "copy"),
        "--port",
        str(port),
    ]
    process = subprocess.Popen([sys.executable, *words], env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and str(port) in process.stdout.readline()
        assert send_to(port, "/setup", {})[1]["model_version"] == ""
        sent = event("ANNOTATION_CREATED", "by day/a.png", labels_of(1))
        assert send_to(port, "/webhook", sent)[1]["training"] == "running"
        assert np.array_equal(label(city, "by day/a.png"), labels_of(1))
        while send_to(port, "/webhook", {"action": "PROJECT_UPDATED"})[1]["training"] == "running":
            time.sleep(0.5)
        (model,) = city.models()
        assert model.trained_on == {"by day/a.png"}
        for _ in range(600):
            if version := send_to(port, "/setup", {})[1]["model_version"]:
                break
            time.sleep(0.1)
        assert version == "model 01"
        shown, test = send_to(port, "/predict", tasks("by day/a.png", "by day/b.png"))[1]["results"]
        assert shown["result"] and not test["result"]
    finally:
        process.terminate()
        assert process.wait(60) == INTERRUPTED
