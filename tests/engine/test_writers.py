"""What a run writes about itself can be read by anybody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage

from tmt_d2.engine.writers import StrictJSONWriter


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    writer = StrictJSONWriter(str(tmp_path / "metrics.json"))
    with EventStorage(3) as storage:
        storage.put_scalars(total_loss=1.5, absent=float("nan"), above=float("inf"), smoothing_hint=False)
        writer.write()
    writer.close()
    (line,) = (tmp_path / "metrics.json").read_text().splitlines()
    values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert values == {"total_loss": 1.5, "absent": None, "above": None, "iteration": 3}
