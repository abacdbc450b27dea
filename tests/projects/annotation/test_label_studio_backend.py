"""Real requests to the backend for Label Studio, on a free port."""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from tests.helpers.errors import refuses
from tmt_d2.inference import Predictor
from tmt_d2.projects.annotation.brush import decode_brush
from tmt_d2.projects.annotation.label_studio_backend import Backend, BackendServer, local_file

pytestmark = pytest.mark.slow

Request = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One image with a space in its folder's name, and one beside the folder of the images."""
    folder = tmp_path / "photos"
    (folder / "by day").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (45, 70, 3), np.uint8)
    for path in (folder / "by day" / "a.png", tmp_path / "secret.png"):
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def backend(photos: Path, model_files: Path, tmp_path: Path) -> Iterator[Backend]:
    """Each load has a new version. A pretended training writes a letter, and reads its exit status from a pipe."""
    os.mkfifo(tmp_path / "pipe")
    training = (
        f"import sys; open({str(tmp_path / 'started')!r}, 'a').write('x'); pipe = open({str(tmp_path / 'pipe')!r})"
    )
    predictor = Predictor.from_config(str(model_files / "tmt.yaml"), str(model_files / "tmt.pth"))
    versions, words = iter(("first", "second")), [sys.executable, "-c", f"{training}; sys.exit(int(pipe.read()))"]
    backend = Backend(lambda: (predictor, next(versions)), photos, words)
    yield backend
    backend.training.stop()


@pytest.fixture
def request_of(backend: Backend) -> Iterator[Request]:
    """request_of(route, body) -> status and answer of a POST; of a GET without a body."""
    with BackendServer(("127.0.0.1", 0), backend) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def send(route: str, body: Any = None, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", route, data, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        yield send
        server.shutdown()
        thread.join()


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
        for region in result["result"]:
            assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "label", "image")
            assert (region["original_width"], region["original_height"]) == (70, 45)
            mask = decode_brush(region["value"]["rle"], (45, 70))
            (name,) = region["value"]["brushlabels"]
            labels[mask] = predictor.classes.names.index(name)
            assert region["score"] == pytest.approx(confidence[mask].mean(), abs=1e-4)
        assert np.array_equal(labels, prediction.labels.numpy())
        assert result["score"] == pytest.approx(confidence.mean(), abs=1e-4)


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


def test_one_training_at_a_time(request_of: Request, backend: Backend, tmp_path: Path) -> None:
    def event(action: str) -> str:
        return request_of("/webhook", {"action": action, "project": {"id": 1}})[1]["training"]

    def end(status: int) -> None:
        (tmp_path / "pipe").write_text(str(status))  # waits for the reader
        assert backend.training._thread
        backend.training._thread.join()

    assert event("PROJECT_UPDATED") == "no"
    assert [event(f"ANNOTATION_{what}") for what in ("CREATED", "UPDATED", "CREATED")] == ["started", *["running"] * 2]
    assert backend.model and backend.model[1] == "first"
    end(0)
    assert (tmp_path / "started").read_text() == "x" and backend.model[1] == "second"
    assert event("START_TRAINING") == "started"
    end(2)
    assert backend.model[1] == "second"  # a training that failed changes nothing
    backend._load = lambda: Predictor.from_config("nowhere.yaml")
    backend.reload()
    assert backend.model[1] == "second"  # nor does a model that cannot be loaded
