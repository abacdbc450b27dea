"""The main job on embedded scenes: source model -> estimator -> fine-tuning -> evaluation -> pictures.

    python -m demo.run --output output/demo                 this is `make demo`
    python -m demo.run --output output/demo-short --short   the same path in about a minute; its figures mean nothing

Everything is written below --output: data/ (the scenes), the folders of tools/train_pair.py, pictures/, results.json.
The same command again goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tmt_d2.cli import show_attention
from tmt_d2.data.datasets.registration import split_name
from tmt_d2.errors import one_line_errors
from tmt_d2.experiments.pair import pair_units, results_table, run_pair
from tmt_d2.experiments.units import Unit
from tmt_d2.projects.street_scenes.render import render
from tmt_d2.utils.logs import log_to_screen

SOURCE, TARGET = "cityscapes", "bdd100k"
MODEL = Path(__file__).parents[1] / "configs" / "models" / "demo.yaml"
SHORT = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2")


def demo_units(output: Path, short: bool = False) -> list[Unit]:
    return pair_units(MODEL, SOURCE, TARGET, ("full", "tmt"), output, SHORT if short else ())


def fine_tuned(output: Path) -> dict[str, Path]:
    """The folder of each method."""
    return {unit.about["method"]: unit.folder for unit in demo_units(output) if unit.kind == "finetune"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    arguments.add_argument("--short", action="store_true", help="few images and iterations: does every part run?")
    args = arguments.parse_args()
    log_to_screen()

    data = args.output.resolve() / "data"
    os.environ["DETECTRON2_DATASETS"] = str(data)
    render(data, [SOURCE, TARGET], train=16 if args.short else 160, val=4 if args.short else 40)
    results = run_pair(demo_units(args.output, args.short), args.output)
    folders, pictures = fine_tuned(args.output), args.output / "pictures"
    show_attention.main(
        ["--config-file", str(folders["tmt"] / "config.yaml"), "--weights", str(folders["tmt"] / "model_final.pth")]
        + ["--compare", str(folders["full"] / "config.yaml"), str(folders["full"] / "model_final.pth")]
        + ["--input", split_name(TARGET, "val"), "--limit", "1" if args.short else "4", "--output", str(pictures)]
        + ["--classes", "road", "car", "--json"]
    )
    print(f"\n{results_table(results)}\n\nfigures: {args.output / 'results.json'}\npictures: {pictures}")


if __name__ == "__main__":
    with one_line_errors():
        main()
    sys.exit(0)
