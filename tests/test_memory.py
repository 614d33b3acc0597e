"""Memory of the process and of its control groups. Oracles: files written by hand, psutil, and real errors of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from climafuse import memory
from climafuse.memory import in_halves, memory_state, out_of_memory, peak_memory_gb

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 1,000,000 KiB, 600,000 of them available; the process holds 1,000 pages."""
    files = {
        "self/statm": "9000 1000 100 1 0 800 0\n",
        "self/cgroup": "0::/\n",
        "meminfo": "MemTotal: 1000000 kB\nMemFree: 1 kB\nMemAvailable: 600000 kB\nHugePages_Total: 0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "self")
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "groups")
    memory._limits.cache_clear()
    monkeypatch.setattr(memory, "_peak", lambda: 5_000_000)
    yield tmp_path
    memory._limits.cache_clear()


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_limits_there_is_what_the_machine_has(machine: Path) -> None:
    state = memory_state()
    assert state is not None
    assert (state.resident, state.peak) == (1000 * PAGE, 5_000_000)
    assert (state.room, state.total) == (600_000 * 1024, 1_000_000 * 1024)


def test_mapped_weights_are_no_room(machine: Path) -> None:
    write(machine / "self", statm=f"0 {700_000 * 1024 // PAGE} 0 0 0 0 0")  # the kernel calls them available
    state = memory_state()
    assert state is not None
    assert state.room == 300_000 * 1024


def test_the_smallest_limit_of_any_group_above_counts(machine: Path) -> None:
    """Version 2: 50 MB of 200 are used in the outer group, 10 of them by files nobody needs."""
    write(machine / "self", cgroup="0::/slurm/job_1")
    write(machine / "groups/slurm/job_1", memory__max="max", memory__current=1, memory__stat="anon 1")
    write(
        machine / "groups/slurm",
        memory__max=200_000_000,
        memory__current=50_000_000,
        memory__stat="anon 40000000\ninactive_file 10000000\nactive_file 5",
    )
    state = memory_state()
    assert state is not None
    assert (state.room, state.total) == (160_000_000, 200_000_000)


def test_version_1_and_a_container_that_sees_only_its_own_root(machine: Path) -> None:
    write(machine / "self", cgroup="7:cpu:/a\n4:memory:/docker/0123\n0::/")
    write(
        machine / "groups/memory",
        memory__limit_in_bytes=100_000_000,
        memory__usage_in_bytes=30_000_000,
        memory__stat="cache 1\ntotal_inactive_file 1000000",
    )
    state = memory_state()
    assert state is not None
    assert (state.room, state.total) == (71_000_000, 100_000_000)
    write(machine / "groups/memory", memory__limit_in_bytes=9223372036854771712)
    memory._limits.cache_clear()
    assert memory_state().total == 1_000_000 * 1024  # type: ignore[union-attr]


def test_a_group_that_is_full_has_no_room(machine: Path) -> None:
    write(machine / "groups", memory__max=4_096_001, memory__current=9_000_000, memory__stat="anon 1")
    assert memory_state().room == 0  # type: ignore[union-attr]


def test_where_nothing_tells_nothing_is_told(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory_state() is None


@pytest.mark.skipif(sys.platform != "linux", reason="files of Linux")
def test_this_process_holds_what_psutil_says() -> None:
    state, process = memory_state(), psutil.Process().memory_info()
    assert state is not None
    assert state.resident == pytest.approx(process.rss, rel=0.02)
    assert state.total <= psutil.virtual_memory().total
    assert 0 < state.room <= psutil.virtual_memory().total
    assert state.peak == pytest.approx(max(peak_memory_gb() * 1e9, state.resident), rel=0.01)


def test_what_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "allocate memory" in str(out_of_memory(caught.value))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")) == (
        "CUDA out of memory. Tried to allocate 2 GiB."
    )
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …")) is not None
    assert out_of_memory(MemoryError()) == "MemoryError"
    assert out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert out_of_memory(ValueError("out of memory")) is None


@pytest.mark.parametrize(("fits", "parts"), [(9, 1), (5, 2), (4, 4), (2, 8), (1, 16)])
def test_halves_are_in_order_and_none_is_left_out(fits: int, parts: int) -> None:
    done: list[int] = []

    def work(items: object) -> None:
        assert isinstance(items, list)
        if len(items) > fits:
            raise MemoryError
        done.extend(items)

    assert in_halves(list(range(9)), work) == parts
    assert done == list(range(9))


def test_a_single_item_that_does_not_fit_and_other_errors_are_raised() -> None:
    def full(items: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(RuntimeError, match="can't allocate"):
        in_halves([1, 2, 3], full)

    def wrong(items: object) -> None:
        calls.append(items)
        raise RuntimeError("shapes")

    calls: list[object] = []
    with pytest.raises(RuntimeError, match="shapes"):
        in_halves([1, 2, 3], wrong)
    assert calls == [[1, 2, 3]]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_a_process_is_not_that_of_its_parent() -> None:
    held = bytearray(b"1") * 600_000_000  # resident while the child starts
    command = "from climafuse.memory import peak_memory_gb; print(peak_memory_gb())"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert peak_memory_gb() > 0.6
    assert 0 < float(done.stdout) < 0.5
    assert held[-1] == ord("1")
