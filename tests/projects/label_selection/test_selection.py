"""What to label next: rows by brute force, each strategy by hand, going on after a kill, lists and their errors."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from tests.helpers.models import Build, tiny_cfg
from tmt_d2.data.labeled import listed
from tmt_d2.errors import UserError
from tmt_d2.inference.predictor import Predictor
from tmt_d2.inference.streaming import find_pictures
from tmt_d2.projects.label_selection import command as select_labels
from tmt_d2.projects.label_selection import pool as pool_module
from tmt_d2.projects.label_selection.pool import Describer, Pool, describe, fill
from tmt_d2.projects.label_selection.proposal import (
    labelled_indices,
    rows_of,
    write_list,
    write_page,
    write_table,
)
from tmt_d2.projects.label_selection.strategies import AUTO, STRATEGIES
from tmt_d2.projects.label_selection.strategies.interface import Choice, Question

CORNERS = np.array([[0, 0], [0, 1], [5, 0], [5, 1], [5, 0.4], [0, 9]], np.float32)  # three places


def made(features: Any = CORNERS, **arrays: Any) -> Pool:
    features = np.asarray(features, np.float32)
    count = len(features)
    names = [f"p{i}" for i in range(count)]
    values: dict[str, Any] = {
        "entropy": np.linspace(0.1, 0.9, count),
        "margin": np.linspace(0.9, 0.1, count),
        "classes": np.full((count, 3), 1 / 3),
        "domain": np.full(count, np.nan),
    }
    return Pool(names, [f"/d/{name}.png" for name in names], features, **{**values, **arrays})


def ask(strategy: str, pool: Pool, budget: int, labelled: Any = (), seed: int = 0) -> Choice:
    question = Question(pool, budget, np.array(labelled, np.int64), np.random.default_rng(seed))
    return STRATEGIES[strategy](question)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "domain"])
def test_so_many_different_unlabelled_ones_the_same_for_the_same_seed(strategy: str) -> None:
    rng = np.random.default_rng(1)
    pool = made(rng.normal(size=(40, 5)), classes=rng.dirichlet(np.ones(3), 40))
    labelled = [3, 4, 30]
    chosen = ask(strategy, pool, 10, labelled).indices
    assert len(chosen) == len(set(chosen)) == 10 and not set(chosen) & set(labelled)
    assert chosen == ask(strategy, pool, 10, labelled).indices
    assert sorted(ask(strategy, pool, 37, labelled).indices) == sorted(set(range(40)) - set(labelled))


def test_random_is_another_choice_for_another_seed() -> None:
    pool = made(np.zeros((50, 2)))
    assert ask("random", pool, 5, seed=1).indices != ask("random", pool, 5, seed=2).indices


def test_uncertain_ones_first() -> None:
    pool = made(entropy=np.array([0.1, 0.5, 0.2, 0.9, 0.3, 0.0]), margin=np.array([0.9, 0.1, 0.5, 0.4, 0.8, 0.2]))
    assert ask("entropy", pool, 3).indices == [3, 1, 4]
    assert ask("entropy", pool, 2, labelled=[3]).indices == [1, 4]
    assert ask("margin", pool, 3).indices == [1, 5, 3]


def test_domain_takes_what_is_least_like_the_source_and_needs_an_estimator() -> None:
    assert ask("domain", made(domain=np.array([0.0, 3.0, -1.0, 9.0, 2.0, 1.0])), 3).indices == [3, 1, 4]
    with pytest.raises(UserError, match="--strategy domain needs a model with trained discriminators"):
        ask("domain", made(), 1)


def test_kcenter_is_greedy_farthest_first() -> None:
    pool = made(np.random.default_rng(0).normal(size=(25, 3)))
    distances = np.linalg.norm(pool.features[:, None] - pool.features[None], axis=2)
    expected = [7]
    for _ in range(6):
        expected.append(int(np.argmax(distances[:, expected].min(1))))
    assert ask("kcenter", pool, 6, labelled=[7]).indices == expected[1:]
    nearest_to_mean = int(np.argmin(np.linalg.norm(pool.features - pool.features.mean(0), axis=1)))
    assert ask("kcenter", pool, 3).indices[0] == nearest_to_mean


def test_kmeans_takes_one_of_each_cluster_the_largest_first_and_what_is_labelled_is_covered() -> None:
    chosen = ask("kmeans", made(), 3)
    assert chosen.indices[0] == 4  # the middle one of the three at (5, ...)
    assert set(chosen.indices[1:]) - {0, 1} == {5}
    assert chosen.clusters is not None and len(set(chosen.clusters[[2, 3, 4]])) == 1
    after = ask("kmeans", made(), 2, labelled=[2])
    assert set(after.indices) - {0, 1} == {5}  # nothing of the labelled cluster


def test_clue_moves_to_where_predictions_are_uncertain() -> None:
    line = np.linspace(0, 1, 101)[:, None].repeat(2, 1)
    uncertain = np.where(np.arange(101) > 80, 1.0, 0.01)
    plain, weighted = (ask(name, made(line, entropy=uncertain), 1).indices[0] for name in ("kmeans", "clue"))
    assert plain == 50 and weighted > 80


def test_coverage_by_hand() -> None:
    classes = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0.5, 0.5], [1.0, 0, 0]])
    pool = made(np.zeros((4, 2)), classes=classes)
    means = classes.mean(0)
    gains = np.sqrt(classes / means).sum(1)
    first = int(np.argmax(gains))
    second = max(set(range(4)) - {first}, key=lambda i: np.sqrt((classes[first] + classes[i]) / means).sum())
    assert ask("coverage", pool, 2).indices == [first, second]
    assert first == 2 and second == 1  # the picture with something else, not the second one full of the first class


def write_pictures(folder: Path, count: int = 5, size: tuple[int, int] = (37, 91)) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def describer_of(model: Any) -> Describer:
    return Describer(model, min_size=0, max_size=1000, image_format="RGB")


@pytest.fixture
def describer(build_tiny: Build) -> Describer:
    torch.manual_seed(0)
    return describer_of(build_tiny("MaskFormer"))


def test_rows_are_those_of_the_scores_whatever_the_batch(describer: Describer, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p")
    pictures = find_pictures(str(tmp_path / "p"))
    pool = describe(describer, pictures, tmp_path / "a", {}, batch=2)
    alone = describe(describer, pictures, tmp_path / "b", {}, batch=1)
    for key in ("features", "entropy", "margin", "classes"):
        assert np.allclose(getattr(pool, key), getattr(alone, key), atol=1e-5)
    assert np.allclose(np.linalg.norm(pool.features, axis=1), np.sqrt(2), atol=1e-5)  # two maps of unit length
    assert np.allclose(pool.classes.sum(1), 1) and np.isnan(pool.domain).all()
    model = describer.model
    image = torch.from_numpy(cv2.imread(str(tmp_path / "p" / "0.png"))[..., ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        images = model.preprocess([{"image": image}])
        outputs = model.run(images).outputs
        masks = outputs["pred_masks"].dense()[0].sigmoid()
        scores = torch.einsum("qn,qhw->nhw", outputs["pred_logits"][0].softmax(-1)[:, :-1], masks)
    probabilities = (scores / scores.sum(0))[:, :10, :23].numpy().astype(np.float64)  # 37 x 91 pixels at 1/4
    expected = -(probabilities * np.log(probabilities)).sum(0).mean() / np.log(len(probabilities))
    ordered = np.sort(probabilities, 0)
    assert pool.entropy[0] == pytest.approx(expected, abs=1e-4)
    assert pool.margin[0] == pytest.approx((ordered[-1] - ordered[-2]).mean(), abs=1e-4)
    shares = np.bincount(probabilities.argmax(0).ravel(), minlength=len(probabilities)) / 230
    assert np.allclose(pool.classes[0], shares, atol=1 / 230 + 1e-6)


def test_a_model_with_an_estimator_says_how_unlike_the_source_a_picture_is(build_tiny: Build, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 2)
    describer = describer_of(build_tiny("TransferableMaskFormer"))
    pool = describe(describer, find_pictures(str(tmp_path / "p")), tmp_path / "a", {})
    assert np.isfinite(pool.domain).all() and pool.domain[0] != pool.domain[1]


def test_it_goes_on_where_it_was_killed_and_names_what_is_broken(
    describer: Describer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "p")
    (tmp_path / "p" / "3.png").write_bytes(b"no picture")
    monkeypatch.setattr(pool_module, "PART", 2)
    pictures, folder = find_pictures(str(tmp_path / "p")), tmp_path / "pool"
    asked: list[int] = []

    def killed(pixels: Any) -> Any:
        asked.append(len(pixels))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Describer.__call__(describer, pixels)

    killing = type("Killing", (), {"image_format": "RGB", "__call__": lambda self, pixels: killed(pixels)})()
    with pytest.raises(KeyboardInterrupt):
        describe(killing, pictures, folder, {"weights": "w"})
    assert sorted(file.name for file in folder.iterdir()) == ["pool.json", *[f.name for f in first(folder)]]
    before = [file.stat().st_mtime_ns for file in first(folder)]
    pool = describe(describer, pictures, folder, {"weights": "w"})
    assert before == [file.stat().st_mtime_ns for file in first(folder)] and len(before) == 1
    assert pool.names == ["0", "1", "2", "4"] and list(pool.broken) == ["3"]
    whole = describe(describer, pictures, tmp_path / "whole", {"weights": "w"})
    assert np.array_equal(pool.features, whole.features) and pool.broken == whole.broken
    with pytest.raises(UserError, match="holds what another model said, or of other pictures: choose another --output"):
        describe(describer, pictures, folder, {"weights": "other"})
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of its pictures can be read: "):
        describe(describer, find_pictures(str(tmp_path / "none")), tmp_path / "n", {})


def first(folder: Path) -> list[Path]:
    return list(folder.glob("pool_00000*"))


def test_what_has_changed_is_asked_again(describer: Describer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that was mended, and with it those of its file only."""
    write_pictures(tmp_path / "p")
    sound = (tmp_path / "p" / "1.png").read_bytes()
    (tmp_path / "p" / "1.png").write_bytes(b"no picture")
    monkeypatch.setattr(pool_module, "PART", 2)
    pictures, folder = find_pictures(str(tmp_path / "p")), tmp_path / "pool"
    assert list(describe(describer, pictures, folder, {}).broken) == ["1"]
    (tmp_path / "p" / "1.png").write_bytes(sound)
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("pool_*") if file not in first(folder)}
    pool = describe(describer, pictures, folder, {})
    assert pool.names == ["0", "1", "2", "3", "4"] and not pool.broken
    assert len(first(folder)) == 1 and all(file.stat().st_mtime_ns == time for file, time in kept.items())


def test_processes_share_the_files_and_together_make_the_pool(
    describer: Describer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "p")
    monkeypatch.setattr(pool_module, "PART", 2)
    pictures, shared = find_pictures(str(tmp_path / "p")), tmp_path / "shared"
    names = [[file.name[:10] for file in fill(describer, pictures, shared, {}, 8, rank, 2)] for rank in (0, 1)]
    assert names == [["pool_00000", "pool_00002"], ["pool_00001"]]
    mute = type("Mute", (), {"image_format": "RGB"})()  # nothing is left to ask
    pool, whole = describe(mute, pictures, shared, {}), describe(describer, pictures, tmp_path / "alone", {})
    assert pool.names == whole.names and np.array_equal(pool.features, whole.features)


def test_reasons_a_list_and_the_way_back(tmp_path: Path) -> None:
    pool = made(domain=np.array([0.0, 2.0, 0.0, 0.0, 0.0, 0.0]))
    rows = rows_of(pool, Choice([1, 5], np.arange(6)), np.array([0]), ["road", "car", "sky"])
    assert [(row.rank, row.line, row.cluster) for row in rows] == [(1, "p1.png", 1), (2, "p5.png", 5)]
    assert rows[0].transferability == pytest.approx(1 / (1 + np.exp(2)))
    assert (rows[0].nearest, rows[0].distance) == ("p0.png", 1.0)
    assert (rows[1].nearest, rows[1].distance) == ("p1.png", 8.0)  # of the labelled one and that before it
    write_list(tmp_path / "list.txt", rows)
    assert (tmp_path / "list.txt").read_text() == "p1.png\np5.png\n"
    assert labelled_indices(pool, str(tmp_path / "list.txt")).tolist() == [1, 5]
    write_table(tmp_path / "t.csv", rows)
    table = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [line["picture"] for line in table] == ["p1.png", "p5.png"]
    assert table[0]["classes"] == "road 0.333; car 0.333; sky 0.333"
    (tmp_path / "list.txt").write_text("# comment\np1\nnobody.png\n/d/p2.png\n")
    with pytest.raises(UserError, match="list.txt: 1 of 3 lines are no pictures of the pool: nobody.png"):
        labelled_indices(pool, str(tmp_path / "list.txt"))


def test_names_that_two_folders_share_are_whole_paths_in_the_list() -> None:
    pool = made(np.zeros((2, 2)))
    pool.files[:] = ["/a/x.png", "/b/x.png"]
    rows = rows_of(pool, Choice([0]), np.zeros(0, np.int64), ["a", "b", "c"])
    assert rows[0].line == "/a/x.png" and rows[0].nearest == "" and rows[0].transferability is None


def test_a_line_that_two_pictures_answer_to_is_refused(tmp_path: Path) -> None:
    pool = made(np.zeros((2, 2)))
    pool.files[:] = ["/a/x.png", "/b/x.png"]
    (tmp_path / "list.txt").write_text("x.png\n")
    with pytest.raises(UserError, match="1 of 1 lines are several images: give the whole path: x.png"):
        labelled_indices(pool, str(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text("/b/x.png\n")
    assert labelled_indices(pool, str(tmp_path / "list.txt")).tolist() == [1]


def test_the_page_stands_alone_and_escapes_names(build_tiny: Build, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 1)
    file = tmp_path / "p" / "0.png"
    evil = file.rename(tmp_path / "p" / "<b>&0.png")
    pool = made(np.zeros((1, 2)))
    pool.files[:] = [str(evil)]
    rows = rows_of(pool, Choice([0]), np.zeros(0, np.int64), ["a", "b", "c"])
    model = build_tiny("MaskFormer")
    predictor = Predictor(model, inference=model, batched=True, min_size=0, max_size=999, image_format="RGB")
    write_page(tmp_path / "page.html", rows, predictor, {"strategy": AUTO})
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;&amp;0.png" in page and "<b>&0" not in page
    assert page.count("data:image/jpeg;base64,") == 2 and "http" not in page


@pytest.mark.slow
def test_the_command_from_a_folder_to_a_list_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tiny_cfg(INPUT__MIN_SIZE_TEST=0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "model.yaml").write_text(cfg.dump())
    write_pictures(tmp_path / "p", 6)
    (tmp_path / "p" / "5.png").write_bytes(b"no picture")

    def select(budget: int, *more: str) -> int:
        words = ["--config-file", str(tmp_path / "model.yaml"), "--weights", str(tmp_path / "model.pth")]
        words += ["--target", str(tmp_path / "p"), "--output", str(tmp_path / "out"), "--budget", str(budget)]
        return select_labels.main([*words, *more])

    assert select(2) == 1  # one is broken
    assert "left out: 5" in capsys.readouterr().out
    first = (tmp_path / "out" / "selected.txt").read_text().split()
    (alone,) = (np.load(file) for file in (tmp_path / "out" / "pool").glob("*.npz"))
    select(2, "--output", str(tmp_path / "two"), "--num-gpus", "2")
    (both,) = (np.load(file) for file in (tmp_path / "two" / "pool").glob("*.npz"))
    assert np.allclose(alone["features"], both["features"], atol=1e-5)
    with pytest.raises(FileNotFoundError):  # here, not in each of the processes
        select(2, "--output", str(tmp_path / "three"), "--num-gpus", "2", "--weights", str(tmp_path / "missing.pth"))
    labelled = tmp_path / "labelled.txt"
    labelled.write_text("\n".join(first))
    select(3, "--labelled", str(labelled), "--strategy", "kcenter")
    second = (tmp_path / "out" / "selected.txt").read_text().split()
    assert sorted(first + second) == [f"{i}.png" for i in range(5)]
    assert (tmp_path / "out" / "labelled.txt").read_text().split() == [*sorted(first), *second]
    assert str(tmp_path / "out" / "labelled.txt") in capsys.readouterr().out
    assert (tmp_path / "out" / "selected.html").is_file() and (tmp_path / "out" / "selected.csv").is_file()
    records = [{"file_name": f"/x/{i}.png", "image_id": f"{i}", "dataset": "d"} for i in range(6)]
    assert [Path(record["file_name"]).name for record in listed(records, str(labelled))] == sorted(first)
    with pytest.raises(UserError, match="--budget is 4: there are 3 pictures without a label"):
        select(4, "--labelled", str(labelled))
    with pytest.raises(UserError, match="lies in --target .*: its pictures would be taken for input next time"):
        select(1, "--output", str(tmp_path / "p" / "out"))
    with pytest.raises(UserError, match="holds what another model said"):  # the same weights, other settings
        select(1, "--", "MODEL.MASK_FORMER.ATTEND_PADDING", "True")
    with pytest.raises(UserError, match="--seed is -1: it must be at least 0"):
        select(1, "--seed", "-1")
    with pytest.raises(UserError, match="--budget is 0: it must be at least 1"):
        select(0)
