"""Propose which pictures of a target to label next: from a folder of unlabelled pictures to a list, and back.

    python tools/select_labels.py --config-file configs/lite0/full.yaml --weights output/lite0/full/model_final.pth \\
        --target photos --budget 20 --output proposed

--output receives

    selected.html    look at it: what is proposed and why; untick what is useless, save the list
    selected.txt     the list, a picture a line; training reads it: TRANSFER.LABELLED proposed/selected.txt
    labelled.txt     with --labelled: that list and the proposed pictures together, which training then reads
    selected.csv     the reasons as a table
    pool/            what the model says of every picture; the same command again, or with another strategy or budget,
                     does not ask it again
    prelabels/       with --prelabels: of each proposed picture NAME.png, the predicted ids of the class list, and all
    prelabels.json   of them as one COCO file, each mask with its confidence: run lengths for CVAT, or for Label Studio,
                     which reads none, --prelabels polygons

No label is read. --target is a folder (with those below it), a text file with a path a line, or a name in Detectron2's
catalogs. With --labelled LIST what is labelled already counts: nothing like it is proposed. Strategies:

    auto       what was best where it was measured (docs/labelling.md): {auto}
    random     any pictures                       entropy    the most uncertain predictions
    margin     the smallest margin of two classes kcenter    always the farthest from all that are chosen
    kmeans     one picture of each cluster        clue       k-means weighted by uncertainty
    domain     the most unlike the source (T)     coverage   most of every predicted class
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import NoReturn

import numpy as np
from detectron2.utils import comm

from tmt_d2.cli.common import parse, run
from tmt_d2.config import model_settings, setup_cfg
from tmt_d2.data import register_data
from tmt_d2.engine.launch import launch
from tmt_d2.errors import UserError
from tmt_d2.inference.predictor import Predictor, load_model
from tmt_d2.inference.streaming import VIDEOS, check_apart, find_pictures
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.projects.label_selection.pool import Describer, describe, fill
from tmt_d2.projects.label_selection.prelabels import FOLDER, MASKS, SEGMENTATIONS, begin, check_free, write_prelabels
from tmt_d2.projects.label_selection.proposal import (
    LIST,
    PAGE,
    TABLE,
    TRAINING_LIST,
    Named,
    labelled_indices,
    rows_of,
    write_list,
    write_page,
    write_table,
)
from tmt_d2.projects.label_selection.strategies import AUTO, STRATEGIES, domain
from tmt_d2.projects.label_selection.strategies.interface import Choice, Question
from tmt_d2.utils.files import remove_temporaries
from tmt_d2.utils.lock import sole_run
from tmt_d2.utils.logs import log_to_screen


def parser():
    text = __doc__.format(auto=AUTO)
    arguments = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", default="", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS")
    add("--target", required=True, metavar="PLACE", help="a folder, a list, or a registered split")
    add("--budget", required=True, type=int, metavar="N", help="how many pictures to propose")
    add("--output", required=True, type=Path, metavar="FOLDER", help="created if it does not exist")
    add("--labelled", metavar="LIST", help="text file of the pictures that have a label already")
    add("--strategy", choices=("auto", *STRATEGIES), default="auto")
    add("--seed", type=int, default=0)
    add("--prelabels", nargs="?", const=MASKS, choices=SEGMENTATIONS, help="for annotators to correct")
    add("--confidence", type=float, default=0.0, metavar="P", help="pre-labels are 255 where they are less sure")
    add("--batch-size", type=int, default=8, metavar="N", help="pictures of one size that share a pass, at most")
    add("--num-gpus", type=int, default=1, help="processes that ask the model, each on a GPU; 256 pictures at a time")
    add("opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides")
    return arguments


def check_question(args, pictures):
    """Refuse what the list of pictures already answers; those that cannot be read are found later.

    Raises:
        UserError: --labelled names other pictures, or --budget asks for more than there are.
    """
    labelled = labelled_indices(Named.of(pictures), args.labelled) if args.labelled else ()
    check_budget(args, len(pictures) - len(labelled))


def check_budget(args, left):
    if args.budget > left:
        raise UserError(f"--budget is {args.budget}: there are {left} pictures without a label")


def question_of(args):
    """The config, and the arguments of ``describe``."""
    if Path(args.target).suffix.lower() in VIDEOS:
        raise UserError(f"--target {args.target} is a video: extract its frames, only files can be labelled")
    register_data(setup_cfg(args.config_file, args.opts), missing_ok=True)  # --target may be a split of custom data
    pictures = find_pictures(args.target)
    check_question(args, pictures)
    cfg, model = load_model(args.config_file, args.weights, args.opts)
    strategy = AUTO if args.strategy == "auto" else args.strategy
    if strategy == "domain" and not isinstance(model, TransferableMaskFormer):
        raise UserError(domain.NEEDS)
    describer = Describer(
        model,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        image_format=cfg.INPUT.FORMAT,
    )
    weights = Path(cfg.MODEL.WEIGHTS)
    identity = {"weights": str(weights), "changed": weights.stat().st_mtime_ns if weights.is_file() else 0}
    identity |= {key: cfg.INPUT[key] for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST", "FORMAT")}
    identity["model"] = hashlib.sha256(model_settings(cfg).encode()).hexdigest()[:16]
    asked = {"describer": describer, "pictures": pictures, "folder": args.output / "pool", "identity": identity}
    return cfg, asked | {"batch": args.batch_size}


def fill_share(args):
    """What one of several processes does."""
    _, asked = question_of(args)
    fill(**asked, rank=comm.get_rank(), processes=comm.get_world_size())


def main(arguments=None):
    args = parse(parser(), arguments)
    log_to_screen()
    check_arguments(args)
    cfg, asked = question_of(args)
    with sole_run(args.output, "--output"):
        remove_temporaries(args.output)
        return propose(args, cfg, asked)


def check_arguments(args):
    for name, least in {"budget": 1, "batch_size": 1, "num_gpus": 1, "seed": 0}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}: it must be at least {least}")
    if not 0 <= args.confidence < 1:
        raise UserError(f"--confidence is {args.confidence}: it must be at least 0 and below 1")
    check_apart(args.output, args.target, "--target")
    if args.prelabels:
        check_free(args.output)
    elif args.confidence:
        raise UserError("--confidence says what --prelabels writes: add it")


def propose(args, cfg, asked):
    if args.num_gpus > 1:
        launch(fill_share, args.num_gpus, args=(args,))  # what follows finds the answers
    model, pool = asked["describer"].model, describe(**asked)
    for name, reason in pool.broken.items():
        print(f"left out: {name}: {reason}")

    labelled = labelled_indices(pool, args.labelled) if args.labelled else np.zeros(0, np.int64)
    check_budget(args, len(pool) - len(labelled))
    strategy = AUTO if args.strategy == "auto" else args.strategy
    choice = STRATEGIES[strategy](Question(pool, args.budget, labelled, np.random.default_rng(args.seed)))
    if args.prelabels:
        options = {"--confidence": args.confidence, "TEST": cfg.TEST.dump(), "MODEL.TMT": cfg.MODEL.TMT.dump()}
        begin(args.output, options | {"pictures": [pool.names[index] for index in choice.indices]})
    predictor = Predictor.of_model(cfg, model)
    rows = rows_of(pool, choice, labelled, model.class_list.names)
    about = {
        "proposed": f"{len(rows)} of {len(pool)} pictures",
        "target": args.target,
        "strategy": strategy,
        "labelled before": len(labelled),
        "model": cfg.MODEL.WEIGHTS,
    }
    write_list(args.output / LIST, rows)
    if args.labelled:
        before = rows_of(pool, Choice(labelled.tolist()), np.zeros(0, np.int64), model.class_list.names)
        write_list(args.output / TRAINING_LIST, [*before, *rows])
    write_table(args.output / TABLE, rows)
    write_page(args.output / PAGE, rows, predictor, about)
    if args.prelabels:
        write_prelabels(
            args.output,
            pool,
            choice.indices,
            predictor,
            confidence=args.confidence,
            segmentation=args.prelabels,
        )
    for row in rows:
        print(f"{row.rank:4d}  {row.line}")
    correct = f"correct {args.output / FOLDER}; " if args.prelabels else ""
    training = args.output / (TRAINING_LIST if args.labelled else LIST)
    print(f"\nlook at {args.output / PAGE}; {correct}train with TRANSFER.LABELLED {training}")
    return 1 if pool.broken else 0


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
