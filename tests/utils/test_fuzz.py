"""A sample of the mutated inputs; `make soak` tries ten times as many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import fuzz

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_mutated_inputs_work_or_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    refused = 0
    for seed in range(15):
        folder = tmp_path / "case" / str(seed)
        folder.mkdir(parents=True)
        refused += bool(fuzz.run(kind, seed, folder))
    assert refused  # the mutations do harm


def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(folder: Path, chance: object) -> None:
        raise KeyError("x")

    def escape(folder: Path, chance: object) -> None:
        (folder.parent / "elsewhere").write_text("")

    def hang(folder: Path, chance: object) -> None:
        while True:
            pass

    folder = tmp_path / "case" / "0"
    folder.mkdir(parents=True)
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    for mistake, error in ((crash, AssertionError), (escape, AssertionError), (hang, fuzz.Hang)):
        monkeypatch.setitem(fuzz.KINDS, "mistake", mistake)
        with pytest.raises(error):
            fuzz.run("mistake", 0, folder)
