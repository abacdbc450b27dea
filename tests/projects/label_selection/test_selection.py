"""Selection of images: statistics by brute force, strategies by hand, resume, output files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from tests.helpers.errors import refuses
from tests.helpers.models import Build, tiny_cfg
from tmt_d2.data.labeled import listed
from tmt_d2.inference import statistics
from tmt_d2.inference.images import find_images
from tmt_d2.inference.predictor import Predictor
from tmt_d2.projects.label_selection import command as select_labels
from tmt_d2.projects.label_selection import pool as pool_module
from tmt_d2.projects.label_selection.pool import Pool, image_statistics, score_pool
from tmt_d2.projects.label_selection.proposal import selected_images, write_page
from tmt_d2.projects.label_selection.strategies import AUTO, STRATEGIES, Selection

NONE = np.zeros(0, np.int64)
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


def select(strategy: str, pool: Pool, budget: int, labeled: Any = (), seed: int = 0) -> Selection:
    return STRATEGIES[strategy](pool, budget, np.array(labeled, np.int64), np.random.default_rng(seed))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_selections_are_distinct_unlabeled_and_repeatable(strategy: str) -> None:
    rng = np.random.default_rng(1)
    pool = made(rng.normal(size=(40, 5)), domain=rng.normal(size=40))
    labeled = [3, 4, 30]
    selected = select(strategy, pool, 10, labeled).indices
    assert len(selected) == len(set(selected)) == 10 and not set(selected) & set(labeled)
    assert selected == select(strategy, pool, 10, labeled).indices
    assert sorted(select(strategy, pool, 37, labeled).indices) == sorted(set(range(40)) - set(labeled))


def test_uncertain_images_first() -> None:
    pool = made(entropy=np.array([0.1, 0.5, 0.2, 0.9, 0.3, 0.0]), margin=np.array([0.9, 0.1, 0.5, 0.4, 0.8, 0.2]))
    assert select("entropy", pool, 3).indices == [3, 1, 4]
    assert select("entropy", pool, 2, labeled=[3]).indices == [1, 4]
    assert select("margin", pool, 3).indices == [1, 5, 3]


def test_domain_selects_images_unlike_the_source_and_needs_an_estimator() -> None:
    assert select("domain", made(domain=np.array([0.0, 3.0, -1.0, 9.0, 2.0, 1.0])), 3).indices == [3, 1, 4]
    with refuses("--strategy"):
        select("domain", made(), 1)


def test_kcenter_is_greedy_farthest_first() -> None:
    pool = made(np.random.default_rng(0).normal(size=(25, 3)))
    distances = np.linalg.norm(pool.features[:, None] - pool.features[None], axis=2)
    expected = [7]
    for _ in range(6):
        expected.append(int(np.argmax(distances[:, expected].min(1))))
    assert select("kcenter", pool, 6, labeled=[7]).indices == expected[1:]
    nearest_to_mean = int(np.argmin(np.linalg.norm(pool.features - pool.features.mean(0), axis=1)))
    assert select("kcenter", pool, 3).indices[0] == nearest_to_mean


def test_kmeans_selects_from_each_cluster_and_counts_labeled_images() -> None:
    selection = select("kmeans", made(), 3)
    assert selection.indices[0] == 4  # the middle one of the three at (5, ...), the largest cluster
    assert set(selection.indices[1:]) - {0, 1} == {5}
    assert selection.clusters is not None and len(set(selection.clusters[[2, 3, 4]])) == 1
    after = select("kmeans", made(), 2, labeled=[2])
    assert set(after.indices) - {0, 1} == {5}  # none of the labeled cluster


def test_clue_moves_to_where_predictions_are_uncertain() -> None:
    line = np.linspace(0, 1, 101)[:, None].repeat(2, 1)
    uncertain = np.where(np.arange(101) > 80, 1.0, 0.01)
    plain, weighted = (select(name, made(line, entropy=uncertain), 1).indices[0] for name in ("kmeans", "clue"))
    assert plain == 50 and weighted > 80


def test_clustering_needs_scikit_learn_which_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    words = [
        "--config-file",
        "none.yaml",
        "--target",
        str(tmp_path),
        "--budget",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    with refuses("strategy", AUTO):
        select_labels.main(words)
    with refuses("strategy"):
        select("clue", made(), 1)
    assert select("random", made(), 1).indices


def write_images(folder: Path, count: int = 5, size: tuple[int, int] = (37, 91)) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def predictor_of(model: Any) -> Predictor:
    return Predictor(tiny_cfg(INPUT__MIN_SIZE_TEST=0), model)


@pytest.fixture
def predictor(build_tiny: Build) -> Predictor:
    torch.manual_seed(0)
    return predictor_of(build_tiny("MaskFormer"))


def test_statistics_by_brute_force_for_any_batch_size(predictor: Predictor, tmp_path: Path) -> None:
    write_images(tmp_path / "p")
    images = find_images(str(tmp_path / "p"))
    pool = score_pool(predictor, images, tmp_path / "a", {}, batch_size=2)
    alone = score_pool(predictor, images, tmp_path / "b", {}, batch_size=1)
    for key in ("features", "entropy", "margin", "classes"):
        assert np.allclose(getattr(pool, key), getattr(alone, key), atol=1e-5)
    assert np.allclose(np.linalg.norm(pool.features, axis=1), np.sqrt(2), atol=1e-5)  # two maps of unit length
    assert np.allclose(pool.classes.sum(1), 1) and np.isnan(pool.domain).all()
    model = predictor.model
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


def test_domain_logits_of_a_model_with_an_estimator(build_tiny: Build, tmp_path: Path) -> None:
    write_images(tmp_path / "p", 2)
    predictor = predictor_of(build_tiny("TransferableMaskFormer"))
    pool = score_pool(predictor, find_images(str(tmp_path / "p")), tmp_path / "a", {})
    assert np.isfinite(pool.domain).all() and pool.domain[0] != pool.domain[1]


def first_files(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.glob("pool_00000*")}


def test_resume_after_a_kill_and_broken_images(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "p")
    (tmp_path / "p" / "3.png").write_bytes(b"no image")
    monkeypatch.setattr(statistics, "IMAGES_PER_FILE", 2)
    images, folder = find_images(str(tmp_path / "p")), tmp_path / "pool"
    calls: list[int] = []

    def killed(predictor: Predictor, pixels: Any) -> Any:
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return image_statistics(predictor, pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pool_module, "image_statistics", killed)
        score_pool(predictor, images, folder, {"weights": "w"})
    assert not predictor.model.backbone._forward_hooks
    before = first_files(folder)
    assert len(before) == 1 and len(list(folder.iterdir())) == 2  # and pool.json
    pool = score_pool(predictor, images, folder, {"weights": "w"})
    assert first_files(folder) == before
    assert pool.names == ["0", "1", "2", "4"] and list(pool.broken) == ["3"]
    whole = score_pool(predictor, images, tmp_path / "whole", {"weights": "w"})
    assert np.array_equal(pool.features, whole.features) and pool.broken == whole.broken
    with refuses(str(folder)):
        score_pool(predictor, images, folder, {"weights": "other"})


def test_a_pool_without_a_readable_image(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"")
    with refuses(str(tmp_path / "none")):
        score_pool(predictor, find_images(str(tmp_path / "none")), tmp_path / "n", {})


def test_changed_images_are_scored_again(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "p")
    sound = (tmp_path / "p" / "1.png").read_bytes()
    (tmp_path / "p" / "1.png").write_bytes(b"no image")
    monkeypatch.setattr(statistics, "IMAGES_PER_FILE", 2)
    images, folder = find_images(str(tmp_path / "p")), tmp_path / "pool"
    assert list(score_pool(predictor, images, folder, {}).broken) == ["1"]
    (tmp_path / "p" / "1.png").write_bytes(sound)
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("pool_0000[12]*")}
    pool = score_pool(predictor, images, folder, {})
    assert pool.names == ["0", "1", "2", "3", "4"] and not pool.broken
    assert len(first_files(folder)) == 1 and all(file.stat().st_mtime_ns == time for file, time in kept.items())


def test_the_page_is_self_contained_and_escapes_names(build_tiny: Build, tmp_path: Path) -> None:
    write_images(tmp_path / "p", 1)
    pool = made(np.zeros((1, 2)))
    pool.files[:] = [str((tmp_path / "p" / "0.png").rename(tmp_path / "p" / "<b>&0.png"))]
    images = selected_images(pool, Selection([0]), NONE, ["a", "b", "c"], ["<b>&0.png"])
    predictor = Predictor(tiny_cfg(INPUT__MIN_SIZE_TEST=0), build_tiny("MaskFormer"))
    write_page(tmp_path / "page.html", images, predictor, {"strategy": AUTO}, {"list.txt": ["<b>&1"]})
    page = (tmp_path / "page.html").read_text()
    assert "<b>&" not in page and "http" not in page
    assert saved_lists(tmp_path / "page.html", lambda name: True) == {"list.txt": ["<b>&1", "<b>&0.png"]}


def saved_lists(page: Path, is_selected: Callable[[str], bool]) -> dict[str, list[str]]:
    """What each button of a page saves, as its script does it, after a user has chosen."""
    buttons, boxes = dict[str, str](), list[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            values = {name: value or "" for name, value in attrs}
            if tag == "button":
                buttons[values["name"]] = values["value"]
            elif values.get("type") == "checkbox":
                boxes.append(values["value"])

    Reader().feed(page.read_text())
    chosen = "".join(f"{line}\n" for line in boxes if is_selected(line))
    return {name: (lines + chosen).splitlines() for name, lines in buttons.items()}


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tiny_cfg(INPUT__MIN_SIZE_TEST=0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "model.yaml").write_text(cfg.dump())
    write_images(tmp_path / "p", 6)
    (tmp_path / "p" / "5.png").write_bytes(b"no image")
    out, labeled = tmp_path / "out", tmp_path / "list.txt"

    def run(budget: int, *more: str) -> int:
        words = ["--config-file", str(tmp_path / "model.yaml"), "--weights", str(tmp_path / "model.pth")]
        words += ["--target", str(tmp_path / "p"), "--output", str(out), "--budget", str(budget)]
        return select_labels.main([*words, *more])

    assert run(2) == 1  # one is broken
    assert "left out: 5" in capsys.readouterr().out
    first = (out / "selected.txt").read_text().split()
    labeled.write_text("\n".join(first))
    run(3, "--labeled", str(labeled), "--strategy", "kcenter")
    second = (out / "selected.txt").read_text().split()
    assert sorted(first + second) == [f"{i}.png" for i in range(5)]
    assert (out / "labeled.txt").read_text().split() == [*sorted(first), *second]
    assert (out / "selected.csv").is_file()
    lists = saved_lists(out / "selected.html", lambda name: True)
    assert lists == {name: (out / name).read_text().split() for name in ("selected.txt", "labeled.txt")}
    rest = [name for name in second if name != second[0]]  # a deselected image is in neither list
    lists = saved_lists(out / "selected.html", lambda name: name != second[0])
    assert lists == {"selected.txt": rest, "labeled.txt": [*sorted(first), *rest]}
    records = [{"file_name": f"/x/{i}.png", "image_id": f"{i}", "dataset": "d"} for i in range(6)]
    assert [Path(record["file_name"]).name for record in listed(records, str(labeled))] == sorted(first)
    for words, key in (
        (["--", "MODEL.MASK_FORMER.ATTEND_PADDING", "True"], str(out / "pool")),  # same weights, other settings
        (["--seed", "-1"], "--seed"),
    ):
        with refuses(key):
            run(1, *words)
