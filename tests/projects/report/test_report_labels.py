"""Sections about the number of labels, and about lists of labeled images beside random draws."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.invented_matrix import metrics, record
from tmt_d2 import setup_cfg
from tmt_d2.experiments.results import Labels, read_results
from tmt_d2.projects.report.data import ReportData
from tmt_d2.projects.report.document import write_report
from tmt_d2.projects.report.sections.choices import chosen_labels
from tmt_d2.projects.report.sections.curves import few_labels

pytestmark = pytest.mark.slow


def write_runs(folder: Path, mious: Mapping[str, tuple[float, ...]], label_seed: int = -1, **more: Any) -> None:
    """Fine-tunings with four labels: mIoU of seeds 1, 2, ... by the name of a list; "" is drawn at random."""
    config = setup_cfg(TINY_CONFIG, method="full", opts=["TRANSFER.LABEL_SEED", str(label_seed)]).dump()
    for name, values in mious.items():
        for seed, miou in enumerate(values, 1):
            about = {"kind": "finetune", "source": "gtav", "target": "bdd100k", "seed": seed, "method": "full"}
            about |= {"label_count": 4, **({"label_list": name} if name else {}), **more}
            unit = folder / f"{name or 'random'}{seed}{more.get('value', '')}"
            record(unit, metrics(miou, np.random.default_rng(0)), **about)
            (unit / "config.yaml").write_text(config)


def test_lists_beside_random_draws(tmp_path: Path) -> None:
    write_runs(tmp_path, {"": (49.2, 50.7, 53.3), "kmeans": (56.8, 53.2, 56.7), "clue": (50.0, 51.0)})
    data = ReportData(read_results(tmp_path))
    assert list(map(str, data.amounts)) == ["4 labels", "4 labels (clue)", "4 labels (kmeans)"]
    assert data.labels == Labels(0.0, 4)  # a list is not what the page is about
    assert not few_labels(data).blocks  # one amount, however it was chosen
    section = chosen_labels(data)
    rows = [[cell.text for cell in row.cells] for row in section.blocks[0].rows]
    assert rows == [
        ["at random, 3 draws", "3", "51.1", "49.2", "53.3", ""],
        ["clue", "2", "50.5", "50.0", "51.0", ""],
        ["kmeans", "3", "55.6", "53.2", "56.8", ""],
    ]
    assert {row.name for row in section.blocks[0].rows} == {"gtav → bdd100k, 4 labels, full"}
    ((_, (chart,)),) = section.blocks[1].panes
    random, clue, kmeans = (difference for _, difference in chart.rows)
    assert random.values == pytest.approx([-1.8667, -0.3667, 2.2333], abs=1e-3) and random.low is None
    gains = np.array([7.6, 2.5, 3.4])
    half = 4.3027 * gains.std(ddof=1) / np.sqrt(3)  # t of 0.975 with two degrees of freedom
    assert (kmeans.mean, kmeans.low, kmeans.high) == pytest.approx((4.5, 4.5 - half, 4.5 + half), abs=1e-3)
    half = 12.706 * 0.25  # two seeds, +0.8 and +0.3: mean 0.55, one degree of freedom
    assert (clue.mean, clue.low, clue.high) == pytest.approx((0.55, 0.55 - half, 0.55 + half), abs=1e-2)
    write_report(tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["label_list"] for row in rows] == ["clue"] * 2 + ["kmeans"] * 3 + [""] * 3


def test_a_draw_is_what_the_seeds_of_one_choice_have_in_common(tmp_path: Path) -> None:
    """Draw 0 is that of the plan, draws 5 and 6 are cells of a sweep over the seed of the draw."""
    write_runs(tmp_path, {"": (40.0, 44.0), "kmeans": (50.0, 51.0)}, label_seed=0)
    sweep = {"sweep": "draws", "key": "TRANSFER.LABEL_SEED"}
    write_runs(tmp_path, {"": (46.0, 48.0)}, label_seed=5, **sweep, value=5)
    write_runs(tmp_path, {"": (43.0,)}, label_seed=6, **sweep, value=6)
    write_runs(tmp_path, {"": (90.0,)}, label_seed=0, sweep="p_T", key="MODEL.TMT.P_T", value=0.5)  # no draw
    section = chosen_labels(ReportData(read_results(tmp_path)))
    (random, kmeans) = section.blocks[0].rows
    assert [cell.text for cell in random.cells] == ["at random, 3 draws", "5", "44.0", "42.0", "47.0", ""]
    assert kmeans.cells[-1].difference == "+6.0"  # to 43 = (40 + 46 + 43) / 3 and 46: 7 and 5
