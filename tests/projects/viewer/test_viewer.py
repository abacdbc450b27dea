"""The page of demo/app.py: its parts, and the whole page in a browser if there is one."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from demo.run import fine_tuned
from tests.helpers.checkout import ROOT, environment
from tests.helpers.errors import refuses
from tests.helpers.small_runs import exif
from tmt_d2.errors import UserError
from tmt_d2.projects.viewer import command as app
from tmt_d2.projects.viewer.checkpoints import Viewer, find_checkpoints
from tmt_d2.projects.viewer.uploads import MAX_MEGABYTES, find_examples, read_upload
from tmt_d2.visualization.sizes import LONGEST

pytestmark = pytest.mark.slow

TMT, FULL = (f"finetune/cityscapes-bdd100k/{method}/labels1/seed1" for method in ("tmt", "full"))
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Path:
    """Random models in the layout of a finished demo, and one example image."""
    folder = tmp_path_factory.mktemp("app")
    for name, trained in fine_tuned(folder).items():
        trained.mkdir(parents=True)
        shutil.copy(model_files / f"{name}.pth", trained / "model_final.pth")
        config = (model_files / f"{name}.yaml").read_text()
        (trained / "config.yaml").write_text(config.replace("MIN_SIZE_TEST: 0", "MIN_SIZE_TEST: 64"))
    (folder / "source").mkdir()
    (folder / "source" / "model_final.pth").touch()  # without a config it is no checkpoint
    images = folder / "data" / "bdd100k" / "images" / "10k" / "val"
    images.mkdir(parents=True)
    save_image(images / "a.jpg", (60, 120))
    return folder


def save_image(path: Path, size: tuple[int, int]) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))
    return path


def titles(html: str) -> list[str]:
    return [unescape(title) for title in re.findall("<b>(.*?)</b>", html)]


def test_checkpoints_and_examples_are_found(folder: Path, tmp_path: Path) -> None:
    assert list(find_checkpoints(folder)) == [TMT, FULL]
    assert [path.name for path in find_examples(folder / "data")] == ["a.jpg"]
    assert find_examples(tmp_path / "nothing") == []
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        find_checkpoints(tmp_path)


def test_any_image_is_shown(folder: Path) -> None:
    viewer = Viewer(find_checkpoints(folder))
    assert viewer.p_t(TMT) == 0.3 and viewer.p_t(FULL) is None
    for size, at in (((1, 1), (0.0, 0.0)), ((37, 91), (1.0, 1.0)), ((3, 300), (0.5, 0.0)), ((70, 1100), (1.0, 0.0))):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        html = viewer.show(image, at, TMT, 1, 0.5)
        assert html != viewer.show(image, at, TMT, 1, 0.0) or size == (1, 1)
        plain = viewer.show(image, at, FULL, 1, 0.5)
        assert set(titles(plain)) < set(titles(html))  # without transferability, the rest


def test_uploads_are_read_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = read_upload(save_image(tmp_path / "a.png", (37, 91)))
    assert image.shape == (37, 91, 3) and image.dtype == np.uint8
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif(6))
    assert read_upload(tmp_path / "turned.jpg").shape == (91, 37, 3)
    assert read_upload(save_image(tmp_path / "wide.png", (10, 2 * LONGEST))).shape == (5, LONGEST, 3)

    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:700])
    for name in ("bomb.png", "notes.png", "half.jpg", "a.png"):
        if name == "a.png":
            monkeypatch.setattr("tmt_d2.projects.viewer.uploads.MAX_MEGABYTES", 0)
        with pytest.raises(UserError) as error:
            read_upload(tmp_path / name)
        assert error.value.key == name and str(tmp_path) not in str(error.value)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="pip install"):
        app.main([])


def test_a_port_in_use_is_refused(folder: Path) -> None:
    pytest.importorskip("gradio", minversion="6")
    from tmt_d2.projects.viewer.server import serve

    with socket.create_server(("127.0.0.1", 0)) as server, refuses("--port"):
        serve(Viewer(find_checkpoints(folder)), [], "127.0.0.1", server.getsockname()[1])


# In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The page as a user starts it: its address and its folder for temporary files.

    Ended as a service is, after which nothing of it may be left.
    """
    pytest.importorskip("gradio", minversion="6")
    temporary = tmp_path_factory.mktemp("temporary")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "demo/app.py", "--output", str(folder), "--port", port]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("open "):
            break
    else:
        pytest.fail("".join(lines))
    try:
        yield line.split()[1], temporary
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not list(temporary.glob("tmt_app_*"))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path")
def test_in_a_browser(served: tuple[str, Path], tmp_path: Path) -> None:
    address, temporary = served
    sync_api = pytest.importorskip("playwright.sync_api")
    image = save_image(tmp_path / "mine.png", (90, 57))
    (tmp_path / "notes.png").write_text("no image")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        expect = sync_api.expect
        images, notes = page.locator("#stage .tmt-pic"), page.locator("#stage .tmt-caption")
        expect(images).to_have_count(9)  # the example is shown without a click
        box = images.first.bounding_box()
        assert box and box["width"] / box["height"] == pytest.approx(2, rel=0.02)

        images.first.click(position={"x": 0.75 * box["width"], "y": 0.25 * box["height"]})
        expect(page.locator("#stage .tmt-mark").first).to_have_attribute("style", re.compile(r"left: 7[45]\.\d+%"))

        drop = page.locator("#drop input[type=file]")
        drop.set_input_files(str(image))
        page.wait_for_function(
            "(image => image.naturalHeight > image.naturalWidth)(document.querySelector('.tmt-pic img'))"
        )
        box = images.first.bounding_box()
        assert box and box["width"] / box["height"] == pytest.approx(57 / 90, rel=0.02)
        drop.set_input_files(str(tmp_path / "notes.png"))
        expect(page.locator(".toast-body")).to_contain_text("notes.png")
        assert [path for path in temporary.glob("tmt_app_*/**/*") if path.is_file()] == []  # uploads are gone
        page.locator(".tmt-thumbs img").first.click()
        page.wait_for_function(
            "(image => image.naturalHeight < image.naturalWidth)(document.querySelector('.tmt-pic img'))"
        )

        number = page.locator("#p_t input[type=number]")
        number.fill("0.5")
        number.press("Enter")
        expect(notes.nth(7)).to_contain_text("p_T = 0.5")
        images.first.focus()
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Enter")
        expect(page.locator("#stage .tmt-mark").nth(3)).to_have_attribute("style", re.compile("left: 40"))
        page.locator("#other input").click()
        page.get_by_role("option", name="full, cityscapes → bdd100k, all labels, seed 1").click()
        expect(images).to_have_count(14)
        expect(page.locator("#stage .tmt-model")).to_have_count(2)
        browser.close()
    elsewhere = [url for url in requested if not url.startswith((address, "data:", "blob:"))]
    assert requested and not elsewhere


def test_uploads_above_the_limit_are_refused_by_the_server(served: tuple[str, Path]) -> None:
    address, temporary = served
    httpx = pytest.importorskip("httpx")  # comes with Gradio
    large = bytes(MAX_MEGABYTES * 2**20 + 1)
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.png", large)})
    assert answer.status_code == 413
    assert [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size > 2**20] == []
    foreign = httpx.get(address, headers={"Host": "elsewhere.example"})  # a name that was made to lead here
    assert foreign.status_code == 400 and "gradio" not in foreign.text
    assert httpx.get(address.replace("127.0.0.1", "localhost")).status_code == 200
    page = httpx.get(address)
    assert "default-src 'self'" in page.headers["content-security-policy"]
