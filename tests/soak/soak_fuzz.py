"""150 mutated inputs of each kind: accepted, or refused with a one-line error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import fuzz


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_mutated_inputs(kind: str, tmp_path: Path) -> None:
    refused = []
    for seed in range(1000, 1150):
        folder = tmp_path / "case" / str(seed)
        folder.mkdir(parents=True)
        refused.append(fuzz.run(kind, seed, folder))
    print(f"{kind}: {sum(map(bool, refused))} of {len(refused)} refused")
