"""Scores of checkpoints for a target, their order, and the command."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.errors import refuses
from tests.helpers.small_runs import make_scenes, options, small_cfg, store_anew
from tmt_d2.cli import score
from tmt_d2.errors import UserError
from tmt_d2.experiments.scoring import Samples, linear_pad, ranked, score_checkpoint, scores


def samples(shift: float = 0.0, images: int = 4, seed: int = 0) -> Samples:
    """Two classes in two dimensions, which the model predicts with certainty."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(80) % 2
    features = torch.randn(80, 2, generator=generator) * 0.1 + labels[:, None] * 4.0
    features[:, 1] += shift
    return Samples(features, torch.eye(2)[labels], labels, torch.arange(80) // (80 // images))


def test_scores_of_a_perfect_model_without_a_shift() -> None:
    values = scores(samples(), samples(seed=1), pixels=80, draws=2, seed=0)
    assert values["LEEP"] == pytest.approx(0, abs=1e-6)
    assert values["F-OTCE"] == pytest.approx(0, abs=0.05)
    assert values["JC-OTCE"] == pytest.approx(0, abs=0.05)
    assert abs(values["PAD"]) < 0.8


def test_what_lowers_each_score() -> None:
    target = samples()
    swapped = target._replace(labels=target.labels[torch.randperm(80, generator=torch.Generator().manual_seed(0))])
    values = scores(swapped, samples(seed=1), pixels=80, draws=1, seed=0)
    assert values["LEEP"] == pytest.approx(-math.log(2), abs=0.1)
    assert values["F-OTCE"] < -0.5
    assert values["JC-OTCE"] < -0.5
    assert linear_pad(samples(), samples(shift=3.0, seed=1)) == 2.0
    assert list(scores(target, pixels=10, draws=1, seed=0)) == ["LEEP"]  # without source data


def test_draws_depend_on_the_seed_only() -> None:
    def drawn(seed: int) -> dict[str, float]:
        return scores(samples(seed=2, shift=1.0), samples(seed=1), pixels=20, draws=3, seed=seed)

    assert drawn(1) == drawn(1)
    assert drawn(1)["F-OTCE"] != drawn(2)["F-OTCE"]


def test_pad_needs_images_to_measure_on() -> None:
    with pytest.raises(UserError):
        linear_pad(samples(images=1), samples())


def test_ranking_knows_which_way_is_up() -> None:
    results = {"a": {"LEEP": -2.0, "PAD": 0.1}, "b": {"LEEP": -1.0, "PAD": 0.5, "F-OTCE": 0.0}}
    assert ranked(results) == {"LEEP": ["b", "a"], "PAD": ["a", "b"]}


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_command_ranks_checkpoints(start, tmp_path, monkeypatch) -> None:
    weights = torch.load(start, weights_only=True)["model"]
    plain = {name: value for name, value in weights.items() if not name.startswith("transferability.")}
    torch.save({"model": plain}, tmp_path / "first.pth")
    plain["sem_seg_head.predictor.class_embed.weight"] = -plain["sem_seg_head.predictor.class_embed.weight"]
    torch.save({"model": plain}, tmp_path / "second.pth")
    files = [str(tmp_path / "first.pth"), str(tmp_path / "second.pth")]
    arguments = ["--config-file", str(TINY_CONFIG), "--target", "bdd100k", "--images", "2"]
    arguments += ["--checkpoints", *files]
    arguments += ["--sources", "cityscapes", "cityscapes", "--json", str(tmp_path / "scores.json")]
    monkeypatch.setattr("sys.argv", ["score.py", *arguments, "--pixels", "40", "--draws", "2", "--", *options()])
    score.main()
    answer = json.loads((tmp_path / "scores.json").read_text())
    assert set(answer["scores"]) == set(files)
    for values in answer["scores"].values():
        assert -math.log(19) <= values["F-OTCE"] <= 0
        assert -2 <= values["PAD"] <= 2
    assert answer["scores"][files[0]]["LEEP"] != answer["scores"][files[1]]["LEEP"]
    assert answer["scores"][files[0]]["PAD"] == answer["scores"][files[1]]["PAD"]  # their features are the same
    monkeypatch.setattr("sys.argv", ["score.py", *arguments, "--sources", "gtav", "--", *options()])
    with pytest.raises(UserError, match="--sources"):
        score.main()


@pytest.mark.slow
def test_images_on_their_side_score_as_upright_ones(start, tmp_path, monkeypatch) -> None:
    make_scenes(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = small_cfg("full", tmp_path, start)
    scores_of = []
    for on_its_side in (False, True):
        for path in (tmp_path / "bdd100k/images/10k/train").iterdir():
            store_anew(path, on_its_side)
        scores_of.append(score_checkpoint(cfg, ["bdd100k_sem_seg_train"], images=2, pixels=40, draws=1))
    assert scores_of[0] == scores_of[1]


def test_too_few_images(tmp_path) -> None:
    cfg = small_cfg("source", tmp_path)
    with refuses("images", 1):
        score_checkpoint(cfg, ["bdd100k_sem_seg_train"], images=1)
