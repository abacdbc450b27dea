"""The report in a browser: offline, without errors, on a telephone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.invented_matrix import three_domains
from tmt_d2.experiments.results import read_results
from tmt_d2.projects.report.document import render_page
from tmt_d2.projects.report.elements import Example, Section

pytestmark = pytest.mark.slow

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> Path:
    return three_domains(tmp_path_factory.mktemp("report") / "invented")


def open_page(page: Path, profile: Path) -> tuple[str, str]:
    """The page after its scripts ran, and what the browser wrote to its console."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom",
        f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--disable-background-networking", "--no-first-run",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_page_opens_offline_without_errors(matrix, tmp_path) -> None:
    """Its policy forbids everything that is not inline, so anything from outside would be an error on the console."""
    pixel = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    example = Example("image", {"full": pixel, "tmt": pixel}, "full", "tmt")
    text = render_page(read_results(matrix), [Section("examples", "Examples", "", [example])])
    assert "default-src 'none'" in text
    (tmp_path / "report.html").write_text(text)
    opened, console = open_page(tmp_path / "report.html", tmp_path / "profile")
    assert console == ""
    assert opened.count('aria-pressed="true"') == 2  # the script has opened the first pane of both groups of tabs
    assert f'<img alt="right view" src="{pixel}">' in opened

    (tmp_path / "bad.html").write_text(text.replace("<main>", '<main><img src="https://example.org/a.png">'))
    assert "example.org" in open_page(tmp_path / "bad.html", tmp_path / "profile")[1]
