"""The report: its parts, its files, and the page in a browser."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.checkout import CONFIGS
from tmt_d2 import setup_cfg
from tmt_d2.commands import report
from tmt_d2.data.label_spaces import CLASSES
from tmt_d2.experiments.records import ALL, Labels
from tmt_d2.experiments.report.charts import Chart, HeatTable, Point, Series
from tmt_d2.experiments.report.document import TEMPLATES, render_page
from tmt_d2.experiments.report.examples import Example, Thumbnail, Worst, doubts_of, told
from tmt_d2.experiments.report.paper import paper_miou
from tmt_d2.experiments.report.results import read_results
from tmt_d2.experiments.report.sections import NOTHING, Cell
from tmt_d2.experiments.report.sections.choices import chosen_labels
from tmt_d2.experiments.report.sections.comparison import results_table
from tmt_d2.experiments.report.sections.curves import few_labels
from tmt_d2.experiments.report.summary import tiles
from tmt_d2.experiments.report.tables import latex_table
from tmt_d2.experiments.report.view import View
from tmt_d2.experiments.report.writing import write_report

pytestmark = pytest.mark.slow

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def record(folder: Path, values: Mapping[str, Any], file: str = "evaluation.json", **about: Any) -> None:
    folder.mkdir(parents=True)
    (folder / file).write_text(json.dumps(values))
    (folder / "stage.json").write_text(json.dumps({"settings": "", "seconds": 12.0, "unit": about}))


def metrics(miou: float, rng: np.random.Generator) -> dict[str, Any]:
    values = {"mIoU": miou, "fwIoU": miou + 20, "mACC": miou + 10, "pACC": miou + 25}
    ious = {f"IoU-{name}": miou + rng.normal(0, 15) for name in CLASSES} | {"IoU-train": None}
    return {"split": values | ious}


def make_matrix(
    output: Path,
    domains: tuple[str, ...],
    seeds: int,
    methods: Mapping[str, float],
    fractions: tuple[float, ...] = (1.0,),
) -> None:
    """An output folder as train_matrix.py leaves it, with invented figures; methods: their gain over full."""
    rng = np.random.default_rng(0)
    texts = {
        name: setup_cfg(str(CONFIGS / f"{name}.yaml")).dump() for name in {"source", "estimator", "full", *methods}
    }
    for seed in range(1, seeds + 1):
        for source in domains:
            folder = output / f"source/{source}/seed{seed}"
            record(folder, metrics(60, rng), kind="source", source=source, seed=seed)
            (folder / "config.yaml").write_text(texts["source"])
            for target in domains:
                if source == target:
                    continue
                about = {"source": source, "target": target, "seed": seed}
                level = 30 + 5 * domains.index(target) - 2 * domains.index(source) + rng.normal(0, 1)
                record(
                    output / f"evaluation/{source}-{target}/seed{seed}",
                    metrics(level - 12, rng),
                    **about,
                    kind="evaluation",
                )
                scores = {"LEEP": level / 20 - 3, "F-OTCE": rng.normal(-1, 0.2), "JC-OTCE": -1.0, "PAD": 2 - level / 30}
                record(output / f"scores/{source}-{target}/seed{seed}", scores, "scores.json", **about, kind="scores")
                estimator = {
                    "proxy_a_distance": [1.5, 1.6, 1.7],
                    "std_of_t_within_image": [0.1, 0.2, 0.1],
                    "rank_stability": [0.8, 0.7, 0.6],
                    "mean_t_by_class": [{name: float(rng.uniform()) for name in CLASSES[:12]} for _ in range(3)],
                }
                folder = output / f"estimator/{source}-{target}/seed{seed}"
                record(folder, estimator, "estimator.json", **about, kind="estimator", variant="")
                (folder / "config.yaml").write_text(texts["estimator"])
                for fraction in fractions:
                    for method, gain in methods.items():
                        folder = output / f"finetune/{source}-{target}/{method}/labels{fraction:g}/seed{seed}"
                        value = level + gain + 4 * np.log2(fraction) + rng.normal(0, 0.3)
                        about_it = {**about, "kind": "finetune", "method": method, "label_fraction": fraction}
                        record(folder, metrics(float(value), rng), **about_it)
                        (folder / "config.yaml").write_text(texts[method])
                        if method == "tmt":
                            drift = {"spearman_to_step_0": [0.81, 0.52, 0.43], "spread": [0.1] * 3, "error": [0.2] * 3}
                            (folder / "transferability.json").write_text(json.dumps(drift))
                        lines = [{"iteration": i, "total_loss": 40 / (1 + i / 40) - gain} for i in range(19, 120, 20)]
                        (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
                for value in (0.0, 0.1, 0.5) if "tmt" in methods else ():
                    swept = {
                        "sweep": "p_T",
                        "key": "MODEL.TMT.P_T",
                        "value": value,
                        "method": "tmt",
                        "label_fraction": 1.0,
                    }
                    folder = output / f"finetune/{source}-{target}/tmt/p_T-{value:g}/labels1/seed{seed}"
                    record(folder, metrics(level + value, rng), **about, kind="finetune", **swept)


METHODS = {"linear": -9.0, "full": 0.0, "leep": 0.1, "tmt": 1.5}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("report") / "invented"
    make_matrix(output, ("bdd100k", "cityscapes", "gtav"), 2, METHODS, (1.0, 0.25))
    return output


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


def test_page_says_what_was_found(matrix) -> None:
    text = render_page(read_results(matrix))
    assert "6 pairs, 2 seeds, all labels. tmt minus full: +1." in text
    assert "a gain." in text
    assert "bdd100k → cityscapes" in text
    assert "paper: tmt" in text
    assert "correlation of T with T before it" in text
    assert "0.52" in text
    assert "nan" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S).lower().split()


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


def test_nothing_is_bold_without_an_interval(matrix: Path, tmp_path: Path) -> None:
    make_matrix(tmp_path / "m", ("a", "b"), 1, {"full": 0.0, "tmt": 3.0})
    assert 'class="best"' not in render_page(read_results(tmp_path / "m"))
    assert 'class="best"' in render_page(read_results(matrix))  # a gain with its interval above 0


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


def test_numbers_of_labels_are_a_curve_with_all_labels_behind_them(tmp_path) -> None:
    rng = np.random.default_rng(0)
    amounts: list[dict[str, Any]] = [{"label_count": 4}, {"label_count": 10}, {"label_fraction": 1.0}]
    for method, step in {"full": 5.0, "self-training": 4.0}.items():
        for place, labels in enumerate(amounts):
            for seed in (1, 2):
                about = {"kind": "finetune", "source": "gtav", "target": "bdd100k", "seed": seed, "method": method}
                record(tmp_path / f"{method}{place}{seed}", metrics(40 + step * place + seed, rng), **about, **labels)
    view = View(read_results(tmp_path))
    assert list(map(str, view.amounts)) == ["all labels", "10 labels", "4 labels"]
    assert view.labels == ALL
    assert view.difference("self-training", labels=Labels(0.0, 10)).mean == pytest.approx(-1)
    chart = few_labels(view).values["chart"]
    assert sorted(chart.x_ticks) == [
        (np.log2(5), "4 labels"),
        (np.log2(11), "10 labels"),
        (np.log2(11) + 2, "all labels"),
    ]
    full = next(series for series in chart.series if series.name == "full")
    assert [(point.x, point.y) for point in full.points] == [
        (x, pytest.approx(41.5 + 5 * place)) for place, (x, _) in enumerate(sorted(chart.x_ticks))
    ]
    assert len(full.band) == 3
    assert [label for label, _ in results_table(view).values["panes"]][::3] == [
        "mIoU, all labels",
        "mIoU, 10 labels",
        "mIoU, 4 labels",
    ]
    assert "4 labels" in latex_table(view.results, Labels(0.0, 4))


def write_runs(folder: Path, mious: Mapping[str, tuple[float, ...]], label_seed: int = -1, **more: Any) -> None:
    """Fine-tunings with four labels: mIoU of seeds 1, 2, ... by the name of a list; "" is drawn at random."""
    config = setup_cfg(str(CONFIGS / "full.yaml"), ["TRANSFER.LABEL_SEED", str(label_seed)]).dump()
    for name, values in mious.items():
        for seed, miou in enumerate(values, 1):
            about = {"kind": "finetune", "source": "gtav", "target": "bdd100k", "seed": seed, "method": "full"}
            about |= {"label_count": 4, **({"labelled": name} if name else {}), **more}
            unit = folder / f"{name or 'random'}{seed}{more.get('value', '')}"
            record(unit, metrics(miou, np.random.default_rng(0)), **about)
            (unit / "config.yaml").write_text(config)


def test_lists_beside_random_draws(tmp_path: Path) -> None:
    write_runs(tmp_path, {"": (49.2, 50.7, 53.3), "kmeans": (56.8, 53.2, 56.7), "clue": (50.0, 51.0)})
    view = View(read_results(tmp_path))
    assert list(map(str, view.amounts)) == ["4 labels", "4 labels (clue)", "4 labels (kmeans)"]
    assert view.labels == Labels(0.0, 4)  # a list is not what the page is about
    assert not few_labels(view).values  # one amount, however it was chosen
    section = chosen_labels(view)
    rows = [[cell.text for cell in row.cells] for row in section.values["table"].rows]
    assert rows == [
        ["at random, 3 draws", "3", "51.1", "49.2", "53.3", ""],
        ["clue", "2", "50.5", "50.0", "51.0", ""],
        ["kmeans", "3", "55.6", "53.2", "56.8", ""],
    ]
    assert {row.name for row in section.values["table"].rows} == {"gtav → bdd100k, 4 labels, full"}
    ((_, chart),) = section.values["panes"]
    random, clue, kmeans = (difference for _, difference in chart.rows)
    assert random.values == pytest.approx([-1.8667, -0.3667, 2.2333], abs=1e-3) and random.low is None
    gains = np.array([7.6, 2.5, 3.4])
    half = 4.3027 * gains.std(ddof=1) / np.sqrt(3)  # t of 0.975 with two degrees of freedom
    assert (kmeans.mean, kmeans.low, kmeans.high) == pytest.approx((4.5, 4.5 - half, 4.5 + half), abs=1e-3)
    half = 12.706 * 0.25  # two seeds, +0.8 and +0.3: mean 0.55, one degree of freedom
    assert (clue.mean, clue.low, clue.high) == pytest.approx((0.55, 0.55 - half, 0.55 + half), abs=1e-2)
    page = write_report(tmp_path).read_text()
    assert "Chosen labels" in page and "at random, 3 draws" in page
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["labelled"] for row in rows] == ["clue"] * 2 + ["kmeans"] * 3 + [""] * 3


def test_a_draw_is_what_the_seeds_of_one_choice_have_in_common(tmp_path: Path) -> None:
    """Draw 0 is that of the plan, draws 5 and 6 are cells of a sweep over the seed of the draw."""
    write_runs(tmp_path, {"": (40.0, 44.0), "kmeans": (50.0, 51.0)}, label_seed=0)
    sweep = {"sweep": "draws", "key": "TRANSFER.LABEL_SEED"}
    write_runs(tmp_path, {"": (46.0, 48.0)}, label_seed=5, **sweep, value=5)
    write_runs(tmp_path, {"": (43.0,)}, label_seed=6, **sweep, value=6)
    write_runs(tmp_path, {"": (90.0,)}, label_seed=0, sweep="p_T", key="MODEL.TMT.P_T", value=0.5)  # no draw
    section = chosen_labels(View(read_results(tmp_path)))
    (random, kmeans) = section.values["table"].rows
    assert [cell.text for cell in random.cells] == ["at random, 3 draws", "5", "44.0", "42.0", "47.0", ""]
    assert kmeans.cells[-1].difference == "+6.0"  # to 43 = (40 + 46 + 43) / 3 and 46: 7 and 5


def test_a_list_alone_has_no_difference_and_draws_alone_no_section(tmp_path: Path) -> None:
    write_runs(tmp_path / "list", {"kmeans": (50.0,)})
    section = chosen_labels(View(read_results(tmp_path / "list")))
    assert [cell.text for cell in section.values["table"].rows[0].cells][-1] == NOTHING and not section.values["panes"]
    render_page(read_results(tmp_path / "list"))
    write_runs(tmp_path / "draws", {"": (50.0, 51.0)})
    assert not chosen_labels(View(read_results(tmp_path / "draws"))).values
    write_runs(tmp_path / "one", {"": (50.0,), "kmeans": (52.0,)})
    (_, row) = chosen_labels(View(read_results(tmp_path / "one"))).values["table"].rows
    assert row.cells[-1] == Cell("", "+2.0")  # and no interval


def test_a_folder_without_results_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no finished unit of train_matrix.py"):
        write_report(tmp_path)


# --- the browser


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
    text = render_page(read_results(matrix), [Example("picture", {"full": pixel, "tmt": pixel})])
    assert "default-src 'none'" in text
    (tmp_path / "report.html").write_text(text)
    opened, console = open_page(tmp_path / "report.html", tmp_path / "profile")
    assert console == ""
    assert opened.count('aria-pressed="true"') == 2  # the script has opened the first pane of both groups of tabs
    assert f'<img alt="right view" src="{pixel}">' in opened

    (tmp_path / "bad.html").write_text(text.replace("<main>", '<main><img src="https://example.org/a.png">'))
    assert "example.org" in open_page(tmp_path / "bad.html", tmp_path / "profile")[1]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_page_on_a_telephone_and_in_the_dark(matrix: Path, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "report.html").write_text(render_page(read_results(matrix)))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = page.locator("#differences .narrow svg text.row").first.bounding_box()
        assert box and box["height"] >= 12  # letters that can be read
        assert not page.locator("#differences .wide").first.is_visible()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="light")
        assert dark == "rgb(18, 23, 31)" != page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.set_viewport_size({"width": 1200, "height": 800})
        assert page.locator("#differences .wide").first.is_visible()
        browser.close()
