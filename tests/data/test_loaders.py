"""Batches depend on seed and step alone; domains, groups, and choices of labels."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from tests.helpers.models import tiny_cfg
from tmt_d2.data.labeled import LabelChoice, label_subset
from tmt_d2.data.loaders import (
    SOURCE_DOMAIN,
    TARGET_DOMAIN,
    Shares,
    build_paired_loader,
    build_semi_supervised_loader,
    build_train_loader,
)
from tmt_d2.errors import UserError


def records(count: int, dataset: str = "d") -> list[dict[str, Any]]:
    return [
        {"file_name": f"{dataset}{i}.png", "sem_seg_file_name": "l.png", "image_id": f"{i:04d}", "dataset": dataset}
        for i in range(count)
    ]


@pytest.fixture
def split() -> Iterator[Any]:
    """Registers a split of the given size, and forgets it afterwards."""
    names: list[str] = []

    def register(count: int) -> str:
        name = f"split_{uuid.uuid4().hex}"
        DatasetCatalog.register(name, lambda: records(count, name))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)


def keep(record: dict[str, Any]) -> dict[str, Any]:
    return record


def with_noise(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"noise": float(np.random.rand())}


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["image_id"] for item in items]


@pytest.mark.parametrize(("fraction", "expected"), [(1, 2975), (1 / 16, 186), (1e-9, 1)])
def test_subset_sizes_by_hand(fraction: float, expected: int) -> None:
    chosen, of_another_order = (ids(label_subset(each, fraction, 0)) for each in (records(2975), records(2975)[::-1]))
    assert len(chosen) == expected and sorted(chosen) == sorted(of_another_order)


@pytest.mark.parametrize("fraction", [0, 1.5, float("nan")])
def test_impossible_share_is_named(fraction: float) -> None:
    with pytest.raises(ValueError, match="TRANSFER.LABEL_FRACTION"):
        label_subset(records(4), fraction, 0)


def test_numbers_lie_inside_one_another_and_inside_shares() -> None:
    everything = records(80)
    subsets = [set(ids(LabelChoice(count=count, seed=5).of(everything))) for count in (30, 10, 4, 1)]
    assert [len(subset) for subset in subsets] == [30, 10, 4, 1]
    for larger, smaller in itertools.pairwise([set(ids(label_subset(everything, 0.5, 5))), *subsets]):
        assert smaller < larger


def test_only_images_with_a_label_can_be_labeled(tmp_path: Path) -> None:
    without = [{key: value for key, value in each.items() if key != "sem_seg_file_name"} for each in records(5, "u")]
    assert LabelChoice().of([*without, *records(3)]) == records(3)
    assert LabelChoice(fraction=0.5).of([*without, *records(8)]) == LabelChoice(fraction=0.5).of(records(8))
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        LabelChoice().of(without)
    with pytest.raises(ValueError, match="TRANSFER.LABEL_COUNT is 4"):
        LabelChoice(count=4).of([*without, *records(3)])
    files = [each | {"file_name": f"/data/{each['image_id']}.png"} for each in [*without, *records(8)[5:]]]
    (tmp_path / "list.txt").write_text("0000\n0006\n")
    with pytest.raises(UserError) as error:
        LabelChoice(file=str(tmp_path / "list.txt")).of(files)
    assert (error.value.key, error.value.value) == ("TRANSFER.LABEL_LIST", str(tmp_path / "list.txt"))
    assert "0000" in error.value.message and "label" in error.value.message  # it is found, unlike an unknown name


def test_a_seed_below_0_is_that_of_the_run() -> None:
    cfg = tiny_cfg(TRANSFER__LABEL_SEED=-1, SEED=7)
    assert LabelChoice.from_config(cfg) == LabelChoice(seed=7)
    with pytest.raises(ValueError, match="LABEL_SEED is -1"):
        LabelChoice.from_config(tiny_cfg(TRANSFER__LABEL_SEED=-1))


def test_listed_images(tmp_path: Path) -> None:
    everything = [record | {"file_name": f"/data/a/{record['image_id']}.png"} for record in records(9)]
    everything.append(everything[0] | {"file_name": "/data/b/0000.png", "image_id": "b0"})
    file = tmp_path / "labeled.txt"
    file.write_text("0007\n\n  0003.png \n/data/b/0000.png\n0003\n")
    assert ids(LabelChoice(file=str(file)).of(everything)) == ["0003", "0007", "b0"]
    for text, match in (("x1\n0001\nx2", "x1, x2"), ("0000.png", "0000.png"), (" \n", "labeled.txt")):
        file.write_text(text)
        with pytest.raises(UserError, match=match):
            LabelChoice(file=str(file)).of(everything)
    with pytest.raises(UserError, match="nowhere.txt"):
        LabelChoice(file="nowhere.txt").of(everything)


def semi_supervised(target: str, shares: Shares, **others: Any) -> Iterator[list[dict[str, Any]]]:
    choices: dict[str, Any] = {"mapper": keep, "labels": LabelChoice(count=4), "seed": 1}
    return itertools.islice(build_semi_supervised_loader(shares, target=[target], **choices | others), 20)


def test_groups_have_their_shares_and_marks(split: Any) -> None:
    target, source, more = split(9), split(5), split(3)
    batches = list(semi_supervised(target, Shares(4, 2, 2), source=[source], unlabeled=[more]))
    labeled = set(ids(LabelChoice(count=4).of(records(9, target))))
    seen = set()
    for batch in batches:
        marks = [(item["domain"], item.get("labeled", True)) for item in batch]
        block = [(TARGET_DOMAIN, True)] * 2 + [(TARGET_DOMAIN, False), (SOURCE_DOMAIN, True)]
        assert marks == block * 2
        assert {item["image_id"] for item, mark in zip(batch, marks) if mark == block[0]} <= labeled
        seen |= {(item["dataset"], item["image_id"]) for item, mark in zip(batch, marks) if not mark[1]}
    assert len(seen) == 9 + 3  # the labeled ones are images too


def test_labeled_images_are_those_of_full_whatever_comes_with_them(split: Any) -> None:
    target = split(9)
    full = build_train_loader([target], with_noise, 4, labels=LabelChoice(count=4), seed=1)
    expected = [[(item["image_id"], item["noise"]) for item in batch] for batch in itertools.islice(full, 20)]
    for shares in (Shares(4), Shares(4, 2), Shares(4, 8)):
        found = [
            [(item["image_id"], item["noise"]) for item in batch if item.get("labeled", True)]
            for batch in semi_supervised(target, shares, mapper=with_noise)
        ]
        assert found == expected


def test_blocks_are_the_same_in_every_process(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = split(9)

    def blocks(processes: int) -> list[list[str]]:
        monkeypatch.setattr(comm, "get_world_size", lambda: processes)
        served = []
        for rank in range(processes):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            batch = next(semi_supervised(target, Shares(8, 4)))
            served += [ids(batch[start : start + 3]) for start in range(0, len(batch), 3)]
        return sorted(served)

    assert blocks(1) == blocks(2) == blocks(4)
    with pytest.raises(ValueError, match=r"8 \+ 4 \+ 0 .* 8 processes"):
        blocks(8)


def test_a_group_without_images_is_refused(split: Any) -> None:
    target = split(4)
    with pytest.raises(ValueError, match="LABEL_COUNT"):
        next(semi_supervised(target, Shares(4, 2)))
    assert next(semi_supervised(target, Shares(4, 2), unlabeled=[split(1)]))
    with pytest.raises(ValueError, match="SOURCE_TRAIN"):
        next(semi_supervised(split(9), Shares(0, 2, 2)))
    for shares, message in ((-0.5, "LABELED_RATIO"), (0.0, "LABELED_RATIO, UNLABELED_RATIO and SOURCE_RATIO")):
        with pytest.raises(UserError, match=message):
            Shares.from_config(tiny_cfg(SELF_TRAINING__LABELED_RATIO=shares, SELF_TRAINING__UNLABELED_RATIO=0.0))
    assert Shares.from_config(tiny_cfg(SOLVER__IMS_PER_BATCH=12)) == Shares(12, 6, 0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_augmentation_follow_the_seed(split: Any, workers: int) -> None:
    name = split(16)

    def first_batches(seed: int) -> list[tuple[str, float]]:
        np.random.seed(seed)  # as Detectron2's default_setup does in the main process
        loader = build_train_loader([name], with_noise, 4, seed=seed, num_workers=workers)
        return [(item["image_id"], item["noise"]) for batch in itertools.islice(loader, 3) for item in batch]

    assert first_batches(1) == first_batches(1)
    assert first_batches(1) != first_batches(2)
    noise = [value for _, value in first_batches(1)]
    assert len(set(noise)) == len(noise)  # workers do not repeat one another


def test_paired_batches_are_half_source_half_target(split: Any) -> None:
    source, target = split(3), split(11)
    loader = build_paired_loader([source], [target], keep, 6, seed=0)
    seen: set[tuple[str, str]] = set()
    for batch in itertools.islice(loader, 8):
        domains = [item["domain"] for item in batch]
        assert domains.count(SOURCE_DOMAIN) == domains.count(TARGET_DOMAIN) == 3
        for item in batch:
            assert item["dataset"] == (source if item["domain"] == SOURCE_DOMAIN else target)
            seen.add((item["dataset"], item["image_id"]))
    assert len(seen) == 3 + 11


@pytest.mark.parametrize(("batch_size", "processes", "multiple"), [(5, 1, 2), (6, 2, 4)])
def test_odd_batches_are_refused(
    split: Any, monkeypatch: pytest.MonkeyPatch, batch_size: int, processes: int, multiple: int
) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    with pytest.raises(ValueError, match=f"batch size is {batch_size}: .* {multiple}$"):
        build_paired_loader([split(2)], [split(2)], keep, batch_size)
