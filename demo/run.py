"""The whole transfer on rendered scenes: source model -> estimator -> fine-tuning -> evaluation -> figures.

    python -m demo.run --output output/demo                 this is `make demo`
    python -m demo.run --output output/demo-short --short   the same steps in about a minute, without meaningful results

Everything is written below --output: data/ (the scenes), the folders of tools/train_pair.py, figures/, results.json.
The same command again resumes an interrupted run.
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
    """Return the folder of each method."""
    return {unit.about["method"]: unit.folder for unit in demo_units(output) if unit.kind == "finetune"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    arguments.add_argument("--short", action="store_true", help="few images and iterations")
    args = arguments.parse_args()
    log_to_screen()

    data = args.output.resolve() / "data"
    os.environ["DETECTRON2_DATASETS"] = str(data)
    render(data, [SOURCE, TARGET], train=16 if args.short else 160, val=4 if args.short else 40)
    results = run_pair(demo_units(args.output, args.short), args.output)
    folders, figures = fine_tuned(args.output), args.output / "figures"
    show_attention.main(
        ["--config-file", str(folders["tmt"] / "config.yaml"), "--weights", str(folders["tmt"] / "model_final.pth")]
        + ["--compare", str(folders["full"] / "config.yaml"), str(folders["full"] / "model_final.pth")]
        + ["--input", split_name(TARGET, "val"), "--limit", "1" if args.short else "4", "--output", str(figures)]
        + ["--classes", "road", "car", "--json"]
    )
    print(f"\n{results_table(results)}\n\nresults: {args.output / 'results.json'}\nfigures: {figures}")


if __name__ == "__main__":
    with one_line_errors():
        main()
    sys.exit(0)
