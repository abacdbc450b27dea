"""A page to play with: drop an image, click a pixel, see what its query attends to and what transferability forbids.

    pip install -e '.[app]'                     once: Gradio
    make demo                                   once: the models, in output/demo
    python demo/app.py                          then open http://127.0.0.1:7860
    python demo/app.py --output output/pair     any other folder of trained models

Every folder below --output that holds model_final.pth and config.yaml is offered as a checkpoint, and images of the
data sets below --output/data as examples. The page shows, for the query that owns the clicked pixel: its mask, the
transferability T of the level that the chosen decoder layer attends to, the mask before and after T, and the attention
weights that the network used. The slider changes p_T, the share of positions with the highest T that no query may
attend to; at 0 it is plain Mask2Former.

The page answers this machine only, unless --host says otherwise, and loads nothing from elsewhere. Uploads are read
into memory and deleted at once; nothing is kept after the end (Ctrl-C).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import run
from tmt_d2.engine.launch import check_port
from tmt_d2.errors import UserError
from tmt_d2.projects.viewer.trained_models import Viewer, find_checkpoints
from tmt_d2.projects.viewer.uploads import find_examples
from tmt_d2.utils.logs import log_to_screen

INSTALL = "the page needs Gradio 6: pip install -e '.[app]'"


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    log_to_screen()
    check_port("--port", args.port, str(args.port))
    try:
        import gradio
    except ImportError as error:
        raise UserError(INSTALL) from error
    if int(gradio.__version__.split(".")[0]) < 6:
        raise UserError(INSTALL)
    from tmt_d2.projects.viewer.server import serve

    serve(Viewer(find_checkpoints(args.output)), find_examples(args.output / "data"), args.host, args.port, args.name)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--output", type=Path, default=Path("output/demo"), metavar="FOLDER", help="trained models; %(default)s")
    add("--host", default="127.0.0.1", help="%(default)s: this machine only; 0.0.0.0: whoever reaches it may upload")
    add("--name", nargs="+", default=[], help="further host names of this machine that are answered, e.g. a proxy's")
    add("--port", type=int, default=7860, help="%(default)s")
    return arguments


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
