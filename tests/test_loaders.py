"""Which images come in which batch: by seed and step alone, of both domains, and a fraction of the labels."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from tmt_d2.data.labelled import LabelChoice, label_subset
from tmt_d2.data.loaders import SOURCE_DOMAIN, TARGET_DOMAIN, build_paired_loader, build_train_loader


def records(count: int, dataset: str = "d") -> list[dict[str, Any]]:
    return [
        {"file_name": f"{dataset}{i}.png", "sem_seg_file_name": f"{i}.png", "image_id": f"{i:04d}", "dataset": dataset}
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


def test_domains_are_named_once() -> None:
    assert (SOURCE_DOMAIN, TARGET_DOMAIN) == (0, 1)


@pytest.mark.parametrize(("fraction", "expected"), [(1, 2975), (1 / 8, 372), (1 / 16, 186), (1e-9, 1)])
def test_subset_sizes_by_hand(fraction: float, expected: int) -> None:
    assert len(label_subset(records(2975), fraction, 0)) == expected


def test_smaller_shares_lie_inside_larger_ones() -> None:
    everything = records(203)
    subsets = [set(ids(label_subset(everything, f, 5))) for f in (1, 0.5, 1 / 8, 1 / 16, 1 / 100)]
    for larger, smaller in itertools.pairwise(subsets):
        assert smaller < larger


def test_subset_depends_on_seed_not_on_order() -> None:
    everything = records(64)
    chosen = ids(label_subset(everything, 0.25, 1))
    assert sorted(ids(label_subset(everything[::-1], 0.25, 1))) == sorted(chosen)
    assert ids(label_subset(everything, 0.25, 1)) == chosen
    assert ids(label_subset(everything, 0.25, 2)) != chosen


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan")])
def test_impossible_share_is_named(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"TRANSFER\.LABEL_FRACTION="):
        label_subset(records(4), fraction, 0)


def test_train_loader_only_serves_the_subset_and_all_of_it(split: Any) -> None:
    name = split(40)
    loader = build_train_loader([name], keep, 2, labels=LabelChoice(0.1, seed=3), seed=0)
    served = [item["image_id"] for batch in itertools.islice(loader, 8) for item in batch]
    expected = set(ids(label_subset(records(40, name), 0.1, 3)))
    assert len(expected) == 4
    assert set(served) == expected
    assert all(set(served[i : i + 4]) == expected for i in range(0, 16, 4))  # each epoch has each image once


def test_single_image_fills_a_batch(split: Any) -> None:
    loader = build_train_loader([split(3)], keep, 4, labels=LabelChoice(0.01), seed=0)
    assert len(next(iter(loader))) == 4


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


@pytest.mark.parametrize("workers", [0, 2])
def test_paired_batches_are_half_source_half_target(split: Any, workers: int) -> None:
    source, target = split(3), split(11)
    loader = build_paired_loader([source], [target], keep, 6, seed=0, num_workers=workers)
    seen: set[tuple[str, str]] = set()
    for batch in itertools.islice(loader, 8):
        domains = [item["domain"] for item in batch]
        assert domains.count(SOURCE_DOMAIN) == domains.count(TARGET_DOMAIN) == 3
        for item in batch:
            assert item["dataset"] == (source if item["domain"] == SOURCE_DOMAIN else target)
            seen.add((item["dataset"], item["image_id"]))
    assert len(seen) == 3 + 11


def test_unpaired_loader_is_not_balanced(split: Any) -> None:
    source, target = split(3), split(11)
    loader = build_train_loader([source, target], keep, 6, seed=0)
    counts = [sum(item["dataset"] == source for item in batch) for batch in itertools.islice(loader, 8)]
    assert counts != [3] * 8


def test_the_catalog_is_not_changed_by_domains(split: Any) -> None:
    name = split(2)
    next(iter(build_paired_loader([name], [name], keep, 2, seed=0)))
    assert all("domain" not in record for record in DatasetCatalog.get(name))


@pytest.mark.parametrize(("batch_size", "processes", "multiple"), [(5, 1, 2), (6, 2, 4)])
def test_odd_batches_are_refused(
    split: Any, monkeypatch: pytest.MonkeyPatch, batch_size: int, processes: int, multiple: int
) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    with pytest.raises(ValueError, match=f"batch size {batch_size} cannot .* use a multiple of {multiple}$"):
        build_paired_loader([split(2)], [split(2)], keep, batch_size)


def test_processes_share_the_order_but_not_the_images(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = split(16)
    served = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        loader = build_train_loader([name], keep, 8, seed=3)
        served.append({item["image_id"] for batch in itertools.islice(loader, 2) for item in batch})
    assert served[0] | served[1] == set(ids(records(16)))
    assert not served[0] & served[1]


def test_building_a_loader_leaves_the_global_seed_alone(split: Any) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_train_loader([split(4)], keep, 2, seed=9)
    assert torch.equal(torch.rand(1), expected)
