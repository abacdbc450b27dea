"""Processes and GPUs that there cannot be are refused before any process starts; the device chooses the backend."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from detectron2 import engine
from detectron2.utils import comm

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.errors import refuses
from tmt_d2.cli import train
from tmt_d2.engine import launch as launch_module
from tmt_d2.engine.launch import launch


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ({"num_processes": 0}, "--num-gpus"),
        ({"num_machines": 0}, "--num-machines"),
        ({"machine_rank": 1}, "--machine-rank"),
        ({"dist_url": "tcp://127.0.0.1:99999"}, "--dist-url"),
    ],
)
def test_processes_that_there_cannot_be(words: dict[str, Any], key: str) -> None:
    with refuses(key):
        launch(lambda: None, **{"num_processes": 1, **words})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ({"num_processes": 3}, "--num-gpus"),
        ({"num_processes": 2, "device": "cuda:1"}, "MODEL.DEVICE"),
    ],
)
def test_gpus_that_there_cannot_be(words: dict[str, Any], key: str, two_gpus: None) -> None:
    with refuses(key):
        launch(lambda: None, **words)


def test_processes_on_the_cpu_use_no_gpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    visible, backends = [], []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(engine, "launch", lambda *_, **__: visible.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    for device in ("cuda", "cpu"):
        launch(lambda: None, 2, device=device)
    assert visible == ["0,1", ""] and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", backends.append)
    monkeypatch.setattr(comm, "create_local_process_group", lambda _: None)
    for device in ("cuda", "cpu"):
        launch(lambda: None, 1, device=device)
    assert backends == ["nccl", "gloo"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with refuses("--nproc-per-node"):
        launch(lambda: None, 1)


def test_the_device_of_the_config_is_that_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    monkeypatch.setattr(launch_module, "launch", lambda *_, device, **__: devices.append(device))
    for device in ("cuda", "cpu"):
        train.main(["--config-file", str(TINY_CONFIG), "--num-gpus", "2", "MODEL.DEVICE", device])
    assert devices == ["cuda", "cpu"]
