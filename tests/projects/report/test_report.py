"""The report of invented matrices: values of its sections, its files, and its page."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.errors import refuses
from tests.helpers.invented_matrix import make_matrix, metrics, record, three_domains
from tests.helpers.small_runs import unit_options
from tmt_d2.errors import UserError
from tmt_d2.experiments.pair import pair_units, run_pair
from tmt_d2.experiments.results import ALL, read_results
from tmt_d2.projects.report import command as report
from tmt_d2.projects.report import document
from tmt_d2.projects.report.data import ReportData
from tmt_d2.projects.report.document import render_page, write_report
from tmt_d2.projects.report.elements import Cell, Example, Section
from tmt_d2.projects.report.examples import ImageError, _at_width, doubts_of, rank_correlations, worst_blocks
from tmt_d2.projects.report.paper import paper_miou
from tmt_d2.projects.report.sections.comparison import results_table
from tmt_d2.projects.report.sections.curves import training
from tmt_d2.projects.report.tables import latex_table, write_csv

pytestmark = pytest.mark.slow

RUN = {"kind": "finetune", "source": "gtav", "target": "bdd100k", "seed": 1, "method": "full", "label_fraction": 1.0}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> Path:
    return three_domains(tmp_path_factory.mktemp("report") / "invented")


def test_page_of_three_domains(matrix) -> None:
    page = write_report(matrix).read_text()
    sections = ("table", "differences", "sweeps", "labels", "classes", "estimators", "scores", "curves", "settings")
    assert re.findall(r'<section id="(\w+)"', page) == list(sections)
    assert "nan" not in re.sub(r'<style>.*?</style>|<script>.*?</script>|"data:[^"]*"', "", page, flags=re.S).lower()


def test_csv_has_every_run(matrix, tmp_path) -> None:
    write_csv(read_results(matrix), tmp_path / "results.csv")
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 3 * 2 + 6 * 2 + 96 + 36
    tuned = next(row for row in rows if row["method"] == "tmt" and row["sweep"] == "p_T" and row["value"] == "0.5")
    assert tuned["key"] == "MODEL.TMT.P_T" and tuned["IoU-train"] == ""
    assert 0 < float(tuned["mIoU"]) < 100
    assert {row["target"] for row in rows if row["kind"] == "source"} == {"bdd100k", "cityscapes", "gtav"}


def test_paper_means_are_those_of_its_summary() -> None:
    table = paper_miou()
    assert len(table) == 20
    means = [np.mean([row[name] for row in table.values()]) for name in ("linear", "full", "leep", "otce", "tmt")]
    assert means == pytest.approx([44.1, 57.35, 57.74, 58.05, 59.35], abs=0.051)
    assert table["synthia", "bdd100k"]["tmt"] == 41.1


def test_two_matrices_are_not_mixed(matrix: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(matrix / "source", tmp_path / name)
    with pytest.raises(UserError, match=r"a/bdd100k/.* b/bdd100k/"):
        read_results(tmp_path)


def test_page_of_one_pair_and_one_seed(tmp_path) -> None:
    """Nothing to compare, to sweep or to correlate; names are escaped."""
    make_matrix(tmp_path / "m", ("a<b", "c"), 1, {"full": 0.0})
    example = Section("examples", "Examples", "", [Example("</script>", {"a<b": "data:,"}, "a<b", "a<b")])
    page = render_page(read_results(tmp_path / "m"), [example])
    assert not {"sweeps", "differences", "classes", "labels"} & {*re.findall(r'<section id="(\w+)"', page)}
    assert "a&lt;b" in page and "a<b" not in page
    assert page.count("</script>") == 2


def test_two_pairs_have_no_interval(matrix: Path, tmp_path: Path) -> None:
    make_matrix(tmp_path / "m", ("a", "b"), 1, {"full": 0.0, "tmt": 3.0})
    few, many = (ReportData(read_results(folder)) for folder in (tmp_path / "m", matrix))

    def trends(data: ReportData) -> list[str]:
        _, (table,) = results_table(data).blocks[0].panes[0]
        return [cell.trend for cell in table.rows[-1].cells]

    assert not any(trends(few))
    assert trends(many) == ["", "down", "", "", "up", "", ""]


def test_a_method_with_fewer_seeds_is_compared_over_the_same_seeds(tmp_path) -> None:
    """Seed 1 is the best for every method; leep, run with seed 1 only and worse there, must not look better."""
    rng = np.random.default_rng(0)
    for method, mious in {"full": (50.0, 40.0, 42.0), "tmt": (51.0, 41.0, 43.0), "leep": (49.0,)}.items():
        for seed, miou in enumerate(mious, 1):
            record(tmp_path / f"{method}{seed}", metrics(miou, rng), **{**RUN, "seed": seed, "method": method})
    results = read_results(tmp_path)
    pair = ("gtav", "bdd100k")
    data = ReportData(results)
    assert (data.gains("leep"), data.gains("tmt")) == ({pair: -1.0}, {pair: 1.0})
    assert (data.is_complete("leep"), data.is_complete("tmt")) == (False, True)
    _, (table,) = results_table(data).blocks[0].panes[0]
    cells = dict(zip(table.columns, [table.rows[0].name, *table.rows[0].cells]))
    assert cells["leep"] == Cell("49.0", "-1.0")
    assert cells["tmt"] == Cell("45.0 ± 5.3", "+1.0")
    assert r"& $45.0 \pm 5.3$" in latex_table(results, ALL)


def test_losses_are_compared_by_the_terms_that_all_methods_have(tmp_path: Path) -> None:
    """Pseudo-labels add a term, which lines of the warm-up lack; two lines are no curve."""
    make_matrix(tmp_path, ("a", "b"), 1, {"full": 0.0, "leep": 0.0, "tmt": 1.0})
    for method in ("full", "leep", "tmt"):
        lines = [{"iteration": i, "loss_ce": 3.0 - i, "loss_mask": 1.0, "total_loss": 9.0} for i in range(3)]
        if method == "tmt":
            lines[2]["loss_pseudo"] = 5.0
        for file in tmp_path.glob(f"finetune/*/{method}/*/*/metrics.json"):
            file.write_text("\n".join(map(json.dumps, lines[: 2 if method == "leep" else 3])))
    _, _, figures = training(ReportData(read_results(tmp_path))).blocks
    for _, chart in figures.parts:
        assert [(series.name, series.y) for series in chart.series] == [
            (name, [4.0, 3.0, 2.0]) for name in ("full", "tmt")
        ]


def image_errors(errors: list[float], doubts: list[dict[str, float]]) -> list[ImageError]:
    return [ImageError(f"{i}.png", each, None, doubt, "data:,") for i, (each, doubt) in enumerate(zip(errors, doubts))]


def test_worst_images_are_listed_by_error_and_by_t() -> None:
    errors = [ImageError(f"{t}.png", error, t, {}, "data:,") for error, t in ((0.25, 0.5), (0.5, 0.1), (0.125, None))]
    by_error, by_t = worst_blocks("tmt", errors, 2)
    assert [file for _, file, _ in by_error.images] == ["0.1.png", "0.5.png"]
    assert [file for _, file, _ in by_t.images] == ["0.5.png", "0.1.png"]
    assert len(worst_blocks("full", [each._replace(t=None) for each in errors], 2)) == 1


def test_rank_correlations_by_hand() -> None:
    errors = [0.4, 0.1, 0.3, 0.2]
    doubts = [{"high entropy": error**2, "small margin": -0.1, "low T": -error} for error in errors]
    correlations = rank_correlations(image_errors(errors, doubts))
    assert correlations == {"high entropy": pytest.approx(1), "low T": pytest.approx(-1)}
    swapped = [doubts[i] for i in (2, 1, 0, 3)]  # the two worst change places: 1 - 6 (1 + 1) / (4 * 15)
    assert rank_correlations(image_errors(errors, swapped))["high entropy"] == pytest.approx(0.8)
    assert rank_correlations(image_errors([0.4, 0.1], doubts)) == rank_correlations([]) == {}


def test_doubts_are_those_of_the_normalized_scores() -> None:
    scores = torch.tensor([[[1.0, 4.0]], [[1.0, 0.0]], [[2.0, 0.0]]])  # 1/4, 1/4, 1/2 and 1, 0, 0
    expected = {"high entropy": pytest.approx(1.5 * np.log(2) / 2), "small margin": pytest.approx(-(0.25 + 1) / 2)}
    assert doubts_of(scores, 0.3) == {**expected, "low T": -0.3}
    assert doubts_of(scores * 7, None) == expected


def test_a_matrix_shows_its_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--worst", "20"])
    seen: list[Any] = []
    monkeypatch.setattr(document, "write_report", lambda *all: seen.append((os.environ["DETECTRON2_DATASETS"], *all)))
    report.main()
    (tmp_path / "data").mkdir()
    report.main()
    assert seen == [(root, tmp_path, 2, "", 20) for root in ("elsewhere", str(tmp_path / "data"))]


@pytest.mark.parametrize("kinds", [("source", "evaluation"), ("source", "evaluation", "finetune")])
def test_what_cannot_be_shown_is_named_on_the_page(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """A matrix under way, and one whose checkpoints and images are elsewhere."""
    make_matrix(tmp_path, ("a", "b"), 1, {"full": 0.0})
    for folder in tmp_path.iterdir():
        if folder.name not in kinds:
            shutil.rmtree(folder)
    page = write_report(tmp_path, images=1, worst=1).read_text()
    with (tmp_path / "results.csv").open() as file:
        assert {row["kind"] for row in csv.DictReader(file)} == {*kinds}
    assert (tmp_path / "results.tex").is_file()
    assert (str(tmp_path / "source" / "a") in page) == ("finetune" in kinds)


def test_images_of_a_pair_whose_source_model_was_given(tmp_path: Path, start: Path, data_root: Path) -> None:
    """That model was only evaluated; without it the section that needs no source model stays."""
    output, given = tmp_path / "out", tmp_path / "given.pth"
    shutil.copy(start, given)
    options = unit_options(SOLVER__MAX_ITER=1)
    run_pair(pair_units(TINY_CONFIG, "cityscapes", "bdd100k", ["full"], output, options, given), output)
    page = write_report(output, images=1, worst=1).read_text()
    assert {"examples", "worst"} < {*re.findall(r'<section id="(\w+)"', page)} and str(given) not in page
    given.unlink()
    page = write_report(output, images=1, worst=1).read_text()
    shown = {*re.findall(r'<section id="(\w+)"', page)}
    assert "worst" in shown and "examples" not in shown and str(given) in page


@pytest.mark.parametrize("size", [(1, 5000), (3, 4000), (40, 3)])
def test_a_thin_image_keeps_a_pixel(size: tuple[int, int]) -> None:
    assert _at_width(np.zeros((*size, 3), np.uint8), 512).shape == (max(1, round(size[0] * 512 / size[1])), 512, 3)


def test_a_folder_without_results_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


def test_runs_of_train_net_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for method, value in (("full", 41.25), ("tmt", 43.0)):
        (tmp_path / method).mkdir()
        text = f"TRANSFER: {{METHOD: {method}, LABEL_COUNT: 4}}\nSEED: 3\n"
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
    with refuses(str(tmp_path)):
        report.main()
