"""Machines to plan for."""

from __future__ import annotations

import pytest
import torch

from climafuse import memory
from climafuse.errors import ConfigurationError
from climafuse.planning import devices
from climafuse.planning.devices import DEVICES, device, memory_of, parse_bytes, this_machine


@pytest.mark.parametrize(
    ("text", "num"),
    [("36GB", 36 * 10**9), ("36 GiB", 36 * 2**30), ("1.5g", 1_500_000_000), ("512M", 512_000_000), ("7", 7)],
)
def test_memory_is_read(text, num):
    assert parse_bytes(text) == num


@pytest.mark.parametrize("text", ["", "many", "-3GB", "3XB", "0GB", "0.4", "ib", "3 GB 2", "9" * 400])
def test_what_is_no_memory_is_refused(text):
    with pytest.raises(ConfigurationError, match="36GB"):
        parse_bytes(text)


def test_gpus_are_found_by_name_and_the_nearest_is_proposed():
    assert device("a100-40").memory == 40 * 10**9
    with pytest.raises(ConfigurationError, match="Did you mean A100-80"):
        device("A100-8")
    with pytest.raises(ConfigurationError, match="Did you mean A100-40 or A100-80"):
        device("A100")
    # Figures of data sheets that count zeros as work would be twice as high.
    assert device("H100").bfloat16 == pytest.approx(1979e12 / 2, rel=1e-3)
    # What drivers tell of (MiB): no more may be planned for.
    for name, there in {"A10": 23028, "L4": 23034, "L40S": 46068, "H100": 81559}.items():
        assert 0.9 * there * 2**20 < device(name).memory < there * 2**20
    for gpu in DEVICES.values():
        assert gpu.gpu
        assert gpu.bfloat16 > gpu.float32 > gpu.bandwidth > 1e11


def test_memory_of_a_known_device_can_be_less():
    found = memory_of("30GB", device("A100-40"))
    assert (found.memory, found.gpu) == (30 * 10**9, True)
    assert memory_of("36GB").memory == 36 * 10**9


def test_this_machine_is_what_is_held_and_what_is_free(monkeypatch):
    monkeypatch.setattr(devices, "memory_state", lambda: memory.MemoryState(5, 7, 11, 100))
    assert this_machine().memory == 16
    assert this_machine(3).memory == 5 + 11 // 3  # what is free is free for three
    monkeypatch.setattr(devices, "memory_state", lambda: None)
    assert this_machine().memory > 2**30


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", None),
    ],
)
def test_the_gpu_of_this_process(name, like, monkeypatch):
    assert devices.this_gpu() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30 * 10**9, 40 * 10**9))
    found = devices.this_gpu()
    assert (found.name, found.memory, found.gpu) == (name, 30 * 10**9, True)
    assert found.bandwidth == (None if like is None else device(like).bandwidth)
