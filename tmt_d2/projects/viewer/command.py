"""Serve a page that shows the attention and the transferability of a clicked pixel.

    python demo/app.py                          models of `make demo`; then open http://127.0.0.1:7860
    python demo/app.py --output output/pair     models of another folder

It needs Gradio: pip install -e '.[app]'. Every folder below --output that holds model_final.pth and config.yaml is a
checkpoint on the page; validation images below --output/data are examples. See tmt_d2/projects/viewer/README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import run
from tmt_d2.errors import UserError
from tmt_d2.utils.ports import check_port

NEEDS_GRADIO = "the page needs Gradio 6: pip install -e '.[app]'"


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    check_port("--port", args.port, str(args.port))
    try:
        import gradio
    except ImportError as error:
        raise UserError(NEEDS_GRADIO) from error
    if int(gradio.__version__.split(".")[0]) < 6:
        raise UserError(NEEDS_GRADIO)
    from tmt_d2.projects.viewer.checkpoints import Viewer, find_checkpoints
    from tmt_d2.projects.viewer.server import serve
    from tmt_d2.projects.viewer.uploads import find_examples
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    serve(Viewer(find_checkpoints(args.output)), find_examples(args.output / "data"), args.host, args.port, args.name)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add(
        "--output",
        type=Path,
        default=Path("output/demo"),
        metavar="FOLDER",
        help="trained models; default: %(default)s",
    )
    add("--host", default="127.0.0.1", help="default: %(default)s, this machine only; 0.0.0.0: any machine")
    add("--name", nargs="+", default=[], metavar="HOST", help="further host names of the page, e.g. a proxy's")
    add("--port", type=int, default=7860, help="default: %(default)s")
    return arguments


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
