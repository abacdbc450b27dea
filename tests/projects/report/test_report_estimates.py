"""Estimates without labels in the report, of an invented matrix."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.invented_matrix import make_matrix
from tmt_d2.experiments.results import read_results
from tmt_d2.projects.report.data import ReportData
from tmt_d2.projects.report.sections.without_labels import regrets, without_labels


def test_estimates_are_compared_with_measurements(tmp_path: Path) -> None:
    """In one of two cells the worse method has the better estimate: a regret of 48 - 36."""
    make_matrix(tmp_path, ("a", "b"), 1, {"full": 0.0, "tmt": 0.0})
    assert not without_labels(ReportData(read_results(tmp_path))).blocks
    figures = iter([(50.0, 40.0), (48.0, 45.0), (60.0, 61.0), (36.0, 50.0)])
    for method in ("full", "tmt"):
        for file in sorted(tmp_path.glob(f"finetune/*/{method}/labels1/*/evaluation.json")):
            measured, estimated = next(figures)
            interval = {"estimated": estimated, "estimated-low": estimated - 5, "estimated-high": estimated + 5}
            file.write_text(
                json.dumps({"split": json.loads(file.read_text())["split"] | {"mIoU": measured} | interval})
            )
    results = read_results(tmp_path)
    assert sorted(regrets(results.fine_tuned)) == [0.0, 12.0]
    figure, table = without_labels(ReportData(results)).blocks
    assert {row.name: row.cells[0].text for row in table.rows} == {
        "runs": "4",
        "mean error": "7.0",
        "intervals that hold the mIoU": "50%",
        "mean regret": "6.0",
    }
