"""Server of the page, which loads nothing from and sends nothing to other machines; needs Gradio."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tmt_d2.errors import UserError
from tmt_d2.projects.viewer.checkpoints import Viewer
from tmt_d2.projects.viewer.page import CSS, build
from tmt_d2.projects.viewer.uploads import MAX_MEGABYTES

SESSIONS = 16  # number of users whose images are held in memory

# The browser then loads nothing from, and sends nothing to, other machines.
POLICY = (
    b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' ws: data: blob:; "
    b"frame-ancestors 'self'"
)


class OnlyThisServer:
    """ASGI middleware that adds ``POLICY`` to every response."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def serve(viewer: Viewer, examples: Sequence[Path], host: str, port: int, names: Sequence[str] = ()) -> None:
    """Serve until interrupted or terminated; uploads are in a folder that is then deleted.

    Args:
        names: further host names of the page, such as that of a proxy.
    """
    _refuse_taken(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is deleted
    with tempfile.TemporaryDirectory(prefix="tmt_app_") as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        _launch(build(viewer, examples, Path(folder)), host, port, own_names(host, names))


def own_names(host: str, names: Sequence[str] = ()) -> list[str]:
    """Return the host names that are answered; requests for other names (DNS rebinding) are refused."""
    own = ["127.0.0.1", "localhost", "[::1]", host, *names]
    if host in ("0.0.0.0", "::"):
        name = socket.gethostname()
        own += [name, socket.getfqdn()]
        with suppress(OSError):
            own += socket.gethostbyname_ex(name)[2]
    return list(dict.fromkeys(own))


def _refuse_taken(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(
            f"not free on {host} ({error.strerror})", key="--port", value=port, hint="choose another"
        ) from error


def _launch(page: gradio.Blocks, host: str, port: int, names: list[str]) -> None:
    fonts, fixed_width = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # installed on the machine
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_MEGABYTES * 2**20,
        state_session_capacity=SESSIONS,
        enable_monitoring=False,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=gradio.themes.Default(primary_hue="teal", font=fonts, font_mono=fixed_width),
        css=CSS,
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=names), Middleware(OnlyThisServer)]},
    )
    print(f"open {url} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
    finally:
        page.close(verbose=False)
