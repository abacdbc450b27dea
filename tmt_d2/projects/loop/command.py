"""Adapt a model to a new city: one folder, from images to a model, in rounds of labeling.

    python tools/adapt.py start --model source.pth --config-file configs/models/lite0.yaml --images photos \\
        --output mycity --source-data iddlite.yaml
    cd mycity
    python tools/adapt.py propose --budget 10                     # rounds/01: label its images with your tool
    python tools/adapt.py import export.zip                       # what the tool exported
    python tools/adapt.py train --time 30m
    python tools/adapt.py status                                  # labels, accuracy, the next command
    python tools/adapt.py predict more_photos --output predicted

Without a source model: start --model none --classes classes.yaml; the first proposals are random. `propose --purpose
test` draws images to measure on, which are never trained on. The commands find the folder by --project, or are in it.

Everything is a file in the folder: config.yaml (for train_net.py), data.yaml, labeled.txt, test.txt, rounds/, labels/,
models/. A command that was stopped is typed again and continues.

Exit status: 0; 1 some labels or images are left out; 2 an error, in one line; 75 a training was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tmt_d2.cli.common import add_overrides, run
from tmt_d2.config.file import find_config
from tmt_d2.errors import UserError
from tmt_d2.projects.loop.choices import CONFIG, NO_MODEL, PROJECT, PURPOSES, TOOLS

if TYPE_CHECKING:
    from tmt_d2.projects.loop.project import Project


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = arguments.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = {
        "start": "write a project",
        "propose": "choose images to label",
        "import": "read what the annotation tool exported",
        "train": "train on all labels; KEY VALUE overrides are kept",
        "status": "show labels, accuracy and the next command",
        "predict": "label images with the newest model",
    }
    parts = {name: commands.add_parser(name, help=text, description=text) for name, text in about.items()}
    add = parts["start"].add_argument
    add("--model", required=True, metavar="FILE", help="checkpoint of the source model, or none")
    add("--config-file", required=True, metavar="FILE", help="a model of configs/models, or any config")
    add("--images", required=True, metavar="FOLDER", help="images of the new city, searched with its subfolders")
    add("--output", required=True, type=Path, metavar="FOLDER", help="the project; created if it does not exist")
    add("--classes", default="", metavar="FILE", help="with --model none: YAML file with a list of class names")
    add("--source-data", default="", metavar="NAME", help="labeled data of the source, or its YAML file")
    add = parts["propose"].add_argument
    add("--budget", required=True, type=int, metavar="N", help="number of images")
    add("--tool", choices=TOOLS, default=TOOLS[0], help="annotation tool; default: %(default)s")
    add("--purpose", choices=PURPOSES, default=PURPOSES[0], help="test: to measure on; default: %(default)s")
    add("--confidence", type=float, default=0.0, metavar="P", help="no pre-label where confidence is below P")
    add = parts["import"].add_argument
    add("export", metavar="EXPORT", help="a zip archive, a folder, or a JSON file")
    add("--map", nargs="+", default=[], metavar="LABEL=CLASS", help="class, or ignore, of a label with another name")
    add("--replace", action="store_true", help="replace label files that differ from the export")
    parts["train"].add_argument("--time", default="", metavar="DURATION", help="such as 30m, sets SOLVER.MAX_ITER")
    add = parts["predict"].add_argument
    add("place", metavar="PLACE", help="a folder, a list, a registered split, a video, or an image")
    add("--output", required=True, metavar="FOLDER", help="created if it does not exist")
    for name, part in parts.items():
        if name != "start":
            part.add_argument("--project", default=".", metavar="FOLDER", help="default: the current folder")
        if name in ("start", "train"):
            add_overrides(part)
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.command == "start":
        check_place_of("--config-file", str(find_config(args.config_file)))
        check_place_of("--images", args.images)
        check_place_of("--model", "." if args.model == NO_MODEL else args.model)
    else:
        if not Path(args.project, PROJECT).is_file():
            hint = "name a folder of `start`, or go there"
            raise UserError(f"has no {PROJECT}", key="--project", value=args.project, hint=hint)
        check_place_of("EXPORT", getattr(args, "export", "."))
    from tmt_d2.projects.loop.project import Project
    from tmt_d2.utils.files import remove_temporaries
    from tmt_d2.utils.lock import folder_lock
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    if args.command == "start":
        return _start(args)
    project = Project(args.project)
    if args.command in ("status", "predict"):  # also while a training runs
        return (_status if args.command == "status" else _predict)(project, args)
    with folder_lock(project.folder, "--project"):
        remove_temporaries(project.folder)
        return {"propose": _propose, "import": _import, "train": _train}[args.command](project, args)


def check_place_of(option: str, place: str) -> None:
    """
    Raises:
        FileNotFoundError: ``place``, a file or a folder, does not exist.
    """
    if not Path(place).exists():
        raise FileNotFoundError(f"{option} {place} does not exist")


def _start(args: argparse.Namespace) -> int:
    from tmt_d2.projects.loop.starting import start
    from tmt_d2.projects.loop.state import next_command

    options = {"classes": args.classes, "source_data": args.source_data, "opts": args.opts}
    project = start(args.output, args.images, args.config_file, args.model, **options)
    print(f"written: {project.folder}; {len(project.files)} images, {len(project.classes().ids)} classes")
    print(f"next: tmt-adapt {next_command(project)} --project {args.output}")
    return 0


def _propose(project: Project, args: argparse.Namespace) -> int:
    from tmt_d2.projects.loop.proposing import propose

    folder = propose(project, args.budget, args.tool, args.purpose, confidence=args.confidence)
    print("\n".join(project.proposed(folder)))
    print(f"\nwritten: {folder}: images/, {args.tool}/, round.html")
    export = folder / args.tool if args.tool == "files" else "EXPORT"
    print(f"next: label the images, then tmt-adapt import {export}")
    return 0


def _import(project: Project, args: argparse.Namespace) -> int:
    from tmt_d2.projects.annotation.labels import read_mapping
    from tmt_d2.projects.loop.state import next_command
    from tmt_d2.projects.loop.training import import_export

    report = import_export(project, args.export, mapping=read_mapping(args.map), replace=args.replace)
    print("\n".join(report.lines()))
    print(f"\n{len(project.labeled())} images to train on\nnext: tmt-adapt {next_command(project)}")
    return 0 if report.is_complete else 1


def _train(project: Project, args: argparse.Namespace) -> int:
    from tmt_d2.projects.loop.project import Project
    from tmt_d2.projects.loop.training import seconds_of, train

    if train(project, seconds_of(args.time) if args.time else 0, args.opts) is None:
        print("nothing new to train on: there is a model of the same labels")
    print(f"the same by hand: python train_net.py --config-file {project.folder / CONFIG}")
    return _status(Project(args.project), args)  # images may have been added during the training


def _status(project: Project, args: argparse.Namespace) -> int:
    from tmt_d2.projects.loop.state import lines, status

    print("\n".join(lines(project, status(project))))
    return 0


def _predict(project: Project, args: argparse.Namespace) -> int:
    from tmt_d2.cli import predict

    model = project.newest_model()
    if model is None:
        raise UserError("has no model yet", key="--project", value=args.project, hint="label images and train")
    words = ["--config-file", str(model.config), "--weights", model.weights, "--input", args.place]
    return predict.main([*words, "--output", args.output, "DATASETS.CUSTOM", str(project.data_set_files())])


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
