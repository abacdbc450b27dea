"""The report: its parts and its files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.checkout import CONFIGS
from tests.helpers.invented_matrix import make_matrix, metrics, record, three_domains
from tmt_d2 import setup_cfg
from tmt_d2.data.datasets.label_spaces import SYNTHIA
from tmt_d2.errors import UserError
from tmt_d2.experiments.records import ALL
from tmt_d2.experiments.results import read_results
from tmt_d2.projects.report import command as report
from tmt_d2.projects.report.charts import Chart, HeatTable, Point, Series
from tmt_d2.projects.report.document import TEMPLATES, render_page
from tmt_d2.projects.report.examples import Example, Thumbnail, Worst, doubts_of, legend_of, told
from tmt_d2.projects.report.paper import paper_miou
from tmt_d2.projects.report.sections import Cell
from tmt_d2.projects.report.sections.comparison import results_table
from tmt_d2.projects.report.sections.curves import sweeps, training
from tmt_d2.projects.report.sections.settings import settings
from tmt_d2.projects.report.summary import tiles
from tmt_d2.projects.report.tables import latex_table
from tmt_d2.projects.report.view import View
from tmt_d2.projects.report.writing import write_report

pytestmark = pytest.mark.slow

RUN = {"kind": "finetune", "source": "gtav", "target": "bdd100k", "seed": 1, "method": "full", "label_fraction": 1.0}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> Path:
    return three_domains(tmp_path_factory.mktemp("report") / "invented")


# --- parts


def test_paper_means_are_those_of_its_summary() -> None:
    table = paper_miou()
    assert len(table) == 20
    means = [np.mean([row[name] for row in table.values()]) for name in ("linear", "full", "leep", "otce", "tmt")]
    assert means == pytest.approx([44.1, 57.35, 57.74, 58.05, 59.35], abs=0.051)
    assert table["synthia", "bdd100k"]["tmt"] == 41.1


def test_chart_parts() -> None:
    chart = Chart([Series("full", "#000", [Point(1, 10), Point(2, 20)])], "x", "y")
    left, right, below, above = chart.x.at(1), chart.x.at(2), chart.y.at(10), chart.y.at(20)
    assert 0 < left < right < chart.size[0] and 0 < above < below < chart.size[1]
    gains = HeatTable(["a"], ["b"], {("a", "b"): 1.0}, full=2.0)
    assert gains.colour(2) == gains.colour(5) != gains.colour(-2)
    assert (gains.text(1), HeatTable(["a"], ["b"], {}, digits=2).text(1)) == ("+1.0", "1.00")


# --- files


def test_csv_has_every_run(matrix) -> None:
    write_report(matrix)
    rows = list(csv.DictReader((matrix / "results.csv").open()))
    assert len(rows) == 3 * 2 + 6 * 2 + 96 + 36
    tuned = next(row for row in rows if row["method"] == "tmt" and row["sweep"] == "p_T" and row["value"] == "0.5")
    assert tuned["key"] == "MODEL.TMT.P_T"
    assert tuned["IoU-train"] == ""
    assert 0 < float(tuned["mIoU"]) < 100


def test_latex_table(matrix) -> None:
    text = latex_table(read_results(matrix), ALL)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 6 + 1
    assert all(row.count("&") == 4 for row in rows)
    assert not any(r"\mathbf" in row for row in rows[1:7])  # a row has no interval
    assert rows[-1].count(r"\mathbf") == 1
    assert r"bdd100k $\to$ cityscapes" in rows[1]
    assert re.search(r"minus full & .* & -- & .* & \$\\mathbf\{\+1\.\d\\ \[\+1", rows[-1])


def test_two_matrices_are_not_mixed(matrix: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(matrix, tmp_path / name)
    assert read_results(tmp_path / "a").fine_tuned
    with pytest.raises(ValueError, match="/a/.* and .*/b/.* are both of one cell: give the folder of one matrix"):
        read_results(tmp_path)


def test_page_says_what_was_found(matrix) -> None:
    text = render_page(read_results(matrix))
    assert "6 pairs, 2 seeds, all labels. tmt minus full, 12 runs each: +1." in text
    assert "a gain." in text
    assert "bdd100k → cityscapes" in text
    assert "paper: tmt" in text
    assert "correlation of T with T before it" in text
    assert "0.52" in text
    assert "nan" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S).lower().split()


def test_single_runs_lie_on_the_bar_of_their_interval(matrix) -> None:
    text = render_page(read_results(matrix))
    row = text[text.index('stroke-width="6"') :]  # the bar, and what is drawn over it
    assert row.index('class="dot"') < row.index(' mean"') < row.index("</svg>")


def test_settings_name_the_timm_model(tmp_path: Path) -> None:
    record(tmp_path / "full", metrics(50, np.random.default_rng(0)), **RUN)
    config = setup_cfg(str(CONFIGS.parent / "lite0" / "full.yaml"))
    (tmp_path / "full" / "config.yaml").write_text(config.dump())
    (row,) = settings(View(read_results(tmp_path))).values["table"].rows
    assert "tf_efficientnet_lite0" in [cell.text for cell in row.cells]


def test_sweeps_of_every_amount_of_labels(tmp_path: Path) -> None:
    """Each has a chart of its own, with the run of the plan where there is one; and one value is a point."""
    rng = np.random.default_rng(0)
    swept = {"sweep": "budget", "key": "SOLVER.MAX_ITER"}
    for count, values in ((4, (None, 1200)), (10, (1200,))):
        for value in values:
            folder = tmp_path / f"{count}-{value}"
            about = {name: each for name, each in RUN.items() if name != "label_fraction"} | {"label_count": count}
            record(folder, metrics(50, rng), **about, **({} if value is None else {**swept, "value": value}))
            (folder / "config.yaml").write_text("SOLVER: {MAX_ITER: 600}\n")
    parts = sweeps(View(read_results(tmp_path))).values["parts"]
    assert [(heading, [point.x for point in chart.series[0].points]) for heading, chart in parts] == [
        ("SOLVER.MAX_ITER, 4 labels", [600, 1200]),
        ("SOLVER.MAX_ITER, 10 labels", [0]),
    ]
    assert list(parts[1][1].x_ticks) == [(0, "1200")]


def test_page_of_one_pair_and_one_seed(tmp_path) -> None:
    """Nothing to compare, to sweep or to correlate: the page says so and leaves those sections out."""
    make_matrix(tmp_path / "m", ("a<b", "c"), 1, {"full": 0.0})
    text = render_page(read_results(tmp_path / "m"), [Example("</script>", {"a<b": "data:,"})])
    assert "No two methods to compare yet." in text
    assert 'id="sweeps"' not in text
    assert "a&lt;b" in text
    assert "a<b" not in text
    assert text.count("</script>") == 2
    assert "paper" not in text.split("</style>")[1].split("<script>")[0].lower()


def test_differences_without_an_interval_are_no_gain(tmp_path) -> None:
    make_matrix(tmp_path / "m", ("a", "b"), 1, {"full": 0.0, "tmt": 3.0})
    assert "from too few runs for an interval" in render_page(read_results(tmp_path / "m"))


def test_a_method_with_fewer_seeds_is_compared_over_the_same_seeds(tmp_path) -> None:
    """Seed 1 is the best for every method; leep, run with seed 1 only and worse there, must not look better."""
    rng = np.random.default_rng(0)
    for method, mious in {"full": (50.0, 40.0, 42.0), "tmt": (51.0, 41.0, 43.0), "leep": (49.0,)}.items():
        for seed, miou in enumerate(mious, 1):
            about = {"kind": "finetune", "source": "gtav", "target": "bdd100k", "seed": seed, "method": method}
            record(tmp_path / f"{method}{seed}", metrics(miou, rng), **about, label_fraction=1.0)
    results = read_results(tmp_path)
    pair = ("gtav", "bdd100k")
    view = View(results)
    assert (view.gains("leep"), view.gains("tmt")) == ({pair: -1.0}, {pair: 1.0})
    assert (view.is_complete("leep"), view.is_complete("tmt")) == (False, True)
    _, table = results_table(view).values["panes"][0]
    cells = dict(zip(table.columns, [table.rows[0].name, *table.rows[0].cells]))
    assert cells["leep"] == Cell("49.0", "-1.0")
    assert cells["tmt"] == Cell("45.0 ± 5.3", "+1.0")
    assert [name for _, name in tiles(view) if name.startswith("mean")] == ["mean mIoU, full", "mean mIoU, tmt"]
    assert r"& $45.0 \pm 5.3$" in latex_table(results, ALL)


def test_colours_are_those_of_the_quantity() -> None:
    """Two values that hardly differ have hardly different colours, whatever else is in the table."""
    noise = HeatTable(["a"], ["b", "c"], {("a", "b"): 50.0, ("a", "c"): 50.1})
    assert noise.colour(50.0) == noise.colour(50.1)
    assert noise.colour(0.0) == "#f5f9fe" and noise.colour(100.0) == noise.colour(120.0)
    assert HeatTable([], [], {}, scale=(0.0, 2.0)).colour(1.0) == noise.colour(50.0)


def test_too_few_records_make_no_curve(tmp_path: Path) -> None:
    make_matrix(tmp_path / "m", ("a", "b"), 1, {"full": 0.0, "tmt": 1.0})
    for file in (tmp_path / "m").glob("finetune/*/tmt/*/*/metrics.json"):
        file.write_text(file.read_text().splitlines()[0])
    text = render_page(read_results(tmp_path / "m"))
    assert "Too few records for a curve: tmt, a → b; tmt, b → a." in text
    assert 'id="curves"' in text and "#e07b24" in text


def test_losses_are_compared_by_the_terms_that_all_methods_have(tmp_path: Path) -> None:
    """Pseudo-labels are one term more, and not in every line: the warm-up has none."""
    make_matrix(tmp_path, ("a", "b"), 1, {"full": 0.0, "tmt": 1.0})
    for method in ("full", "tmt"):
        lines = [{"iteration": i, "loss_ce": 3.0 - i, "loss_mask": 1.0, "total_loss": 9.0} for i in range(3)]
        if method == "tmt":
            lines[2]["loss_pseudo"] = 5.0
        for file in tmp_path.glob(f"finetune/*/{method}/*/*/metrics.json"):
            file.write_text("\n".join(map(json.dumps, lines)))
    for _, chart in training(View(read_results(tmp_path))).values["parts"]:
        assert [[point.y for point in series.points] for series in chart.series] == [[4.0, 3.0, 2.0]] * 2


def test_nothing_is_bold_without_an_interval(matrix: Path, tmp_path: Path) -> None:
    make_matrix(tmp_path / "m", ("a", "b"), 1, {"full": 0.0, "tmt": 3.0})
    assert 'class="best"' not in render_page(read_results(tmp_path / "m"))
    assert 'class="best"' in render_page(read_results(matrix))  # a gain with its interval above 0


def test_the_legend_of_examples_names_what_occurs() -> None:
    legend = legend_of(SYNTHIA)
    assert len(legend) == 16 and legend[0] == ("road", "rgb(128, 64, 128)")
    assert {"road", "terrain", "truck", "train"} - {name for name, _ in legend} == {"terrain", "truck", "train"}


def test_worst_pictures_stand_in_their_sheets() -> None:
    sheet = [Thumbnail("a<b.png", 0.25, 0.5, "data:,"), Thumbnail("c.png", 0.125, None, "data:,")]
    worst = Worst({"tmt, largest error": sheet}, {"high entropy": 0.714, "low T": -0.04}, 233)
    section = TEMPLATES.get_template("sections/worst.html").render(worst._asdict())
    assert "over all 233 pictures: high entropy +0.71, low T -0.04. At +1" in section
    without = TEMPLATES.get_template("sections/worst.html").render(worst._replace(told={})._asdict())
    assert "Spearman" not in without and "a&lt;b.png" in without
    assert "25.0 % wrong, mean T 0.500<br>a&lt;b.png" in section and "12.5 % wrong<br>c.png" in section


def test_what_tells_an_error_by_hand() -> None:
    doubts = [{"high entropy": 0.9, "small margin": -0.1, "low T": 0.5}] * 4
    errors = [0.4, 0.1, 0.3, 0.2]
    doubts = [{**each, "high entropy": error**2, "low T": -error} for each, error in zip(doubts, errors)]
    assert told(list(zip(errors, doubts))) == {"high entropy": pytest.approx(1), "low T": pytest.approx(-1)}
    swapped = [doubts[i] for i in (2, 1, 0, 3)]  # the two worst change places: 1 - 6 (1 + 1) / (4 * 15)
    assert told(list(zip(errors, swapped)))["high entropy"] == pytest.approx(0.8)
    assert told(list(zip([0.4, 0.1], doubts))) == told([]) == {}


def test_doubts_are_those_of_the_normalised_scores() -> None:
    scores = torch.tensor([[[1.0, 4.0]], [[1.0, 0.0]], [[2.0, 0.0]]])  # 1/4, 1/4, 1/2 and 1, 0, 0
    doubts = doubts_of(scores, 0.3)
    assert doubts == {
        "high entropy": pytest.approx(1.5 * np.log(2) / 2),
        "small margin": pytest.approx(-(0.25 + 1) / 2),
        "low T": -0.3,
    }
    assert doubts_of(scores * 7, None).keys() == {"high entropy", "small margin"}
    assert doubts_of(scores * 7, None)["high entropy"] == pytest.approx(doubts["high entropy"])


def test_a_matrix_shows_its_own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path), "--worst", "20"])
    seen: list[Any] = []
    monkeypatch.setattr(report, "write_report", lambda *all: seen.append((os.environ["DETECTRON2_DATASETS"], *all)))
    report.main()
    (tmp_path / "data").mkdir()
    report.main()
    assert [each[0] for each in seen] == ["elsewhere", str(tmp_path / "data")]
    assert seen[0][1:] == (tmp_path, 2, "", 20)


@pytest.mark.parametrize("kinds", [("source", "evaluation"), ("source", "evaluation", "finetune")])
def test_what_cannot_be_shown_is_named_on_the_page(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """A matrix under way, and one whose checkpoints and images are elsewhere."""
    make_matrix(tmp_path, ("a", "b"), 1, {"full": 0.0})
    for folder in tmp_path.iterdir():
        if folder.name not in kinds:
            shutil.rmtree(folder)
    text = write_report(tmp_path, images=1, worst_count=1).read_text()
    with (tmp_path / "results.csv").open() as file:
        assert {row["kind"] for row in csv.DictReader(file)} == {*kinds}
    assert (tmp_path / "results.tex").is_file()
    assert (str(tmp_path / "source" / "a") in text) == ("finetune" in kinds)


def test_a_folder_without_results_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


def test_runs_of_train_net_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for method, value in (("full", 41.25), ("tmt", 43.0)):
        (tmp_path / method).mkdir()
        text = f"TRANSFER: {{STAGE: finetune, METHOD: {method}, LABEL_COUNT: 4}}\nSEED: 3\n"
        (tmp_path / method / "config.yaml").write_text(text)
        (tmp_path / method / "evaluation.json").write_text(json.dumps({"a_val": {"mIoU": value, "fwIoU": None}}))
    folders = [str(tmp_path / method) for method in ("full", "tmt")]
    monkeypatch.setattr("sys.argv", ["report.py", *folders])
    report.main()
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split()[1:7] for row in rows] == [
        ["full", "4", "3", "a_val", "41.2"],
        ["tmt", "4", "3", "a_val", "43.0"],
    ]
    monkeypatch.setattr("sys.argv", ["report.py", *folders, str(tmp_path)])
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        report.main()
