"""Machines that a run may be planned for: this one, or a GPU by the figures of its data sheet.

Peaks are dense (half of what sheets print where they count zeros that are skipped), of the SXM form of A100, H100 and
H200. No run reaches them: times that follow from them are estimates, and are called so.

Memory is what sheets print, in GB of 10⁹ bytes. Drivers are said to report more of it, but not as many GiB: 24.15 GB of
the A10 and the L4, 48.30 of the L40S, 85.52 of the H100. Error correction takes a part of it.

References:
    The vendor's documents were not to be had whole: these are read as others print or cite them.
    "NVIDIA A100 Tensor Core GPU Datasheet" (bandwidth, peaks), and the tables of specifications of "NVIDIA H100
    Tensor Core GPU" and "NVIDIA L40S" (all figures).
    A10, L4, RTX 4090 and the bandwidth and peak in bfloat16 of the H200 agree with lists that name no document; of
    the first two only the peak in 16 bits was found, not that in bfloat16 by name. The peak in float32 of the H200
    was not found: it is the H100's, which has the same processor.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches

from climafuse.errors import ConfigurationError
from climafuse.memory import memory_state

GB, GIB = 10**9, 2**30
THIS_MACHINE = "this machine"


@dataclass(frozen=True)
class Device:
    """Where a run is planned for.

    Args:
        name: What it is called.
        memory: Bytes that a process may use.
        bfloat16: Peak of bfloat16 matrix products, dense, in floating-point operations a second; None if not known.
        float32: Peak of float32 products.
        bandwidth: Bytes a second between memory and processor.
        gpu: Whether it is a GPU.
    """

    name: str
    memory: int
    bfloat16: float | None = None
    float32: float | None = None
    bandwidth: float | None = None
    gpu: bool = False


def _gpu(name: str, memory: int, bfloat16: float, float32: float, bandwidth: float) -> Device:
    return Device(name, memory * GB, bfloat16 * 1e12, float32 * 1e12, bandwidth * 1e9, gpu=True)


DEVICES: dict[str, Device] = {
    device.name.lower(): device
    for device in [
        _gpu("A10", 24, 125, 31.2, 600),
        _gpu("A100-40", 40, 312, 19.5, 1555),
        _gpu("A100-80", 80, 312, 19.5, 2039),
        _gpu("H100", 80, 989, 67, 3350),
        _gpu("H200", 141, 989, 67, 4800),
        _gpu("L4", 24, 121, 30.3, 300),
        _gpu("L40S", 48, 362, 91.6, 864),
        _gpu("RTX-4090", 24, 165, 82.6, 1008),
    ]
}


def device(name: str) -> Device:
    """Return a GPU of the table.

    Raises:
        ConfigurationError: There is none of that name.
    """
    found = DEVICES.get(name.lower())
    if found is None:
        near = [key for key in DEVICES if name and key.startswith(name.lower())]
        near = near or get_close_matches(name.lower(), DEVICES, n=1)
        raise ConfigurationError(
            "device",
            expected=", ".join(entry.name for entry in DEVICES.values()),
            received=repr(name),
            remedy=f"Did you mean {' or '.join(DEVICES[key].name for key in near)}?"
            if near
            else "Give its memory: --memory 24GB.",
        )
    return found


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_bytes(text: str) -> int:
    """Read a number of bytes: "36GB" is 36·10⁹, "36GiB" 36·2³⁰.

    Raises:
        ConfigurationError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    num = 0.0
    if found is not None and (found[2] or not found[3]):
        unit = _UNITS[found[2]] if not found[3] else 1024 ** ("kmgt".index(found[2]) + 1)
        num = float(found[1]) * unit
    if not 1 <= num < 2**63:
        raise ConfigurationError(
            "memory", expected="a number of bytes, such as 36GB", received=repr(text), remedy="Correct it."
        )
    return round(num)


def this_machine(processes: int = 1) -> Device:
    """Return this machine with what this process may have now: what it holds, and its part of what is free beside it.

    Limits of control groups are respected, and files that are only cached count as free.

    Args:
        processes: How many take as much as this one.
    """
    state = memory_state()
    if state is not None:
        return Device(THIS_MACHINE, state.resident + state.room // processes)
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0  # not Linux: all there is
    return Device(THIS_MACHINE, (pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else 8 * GIB) // processes)


def this_gpu() -> Device | None:
    """Return the GPU that this process would train on, with what is free of its memory; None where there is none.

    Its peaks are those of the table, where its name is in it.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    name, free = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    words = re.split(r"[\s-]+", name.lower())
    # "NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 4090": the longest name of the table all of whose parts are in it.
    known = [
        entry
        for entry in DEVICES.values()
        if all(part in words or f"{part}gb" in words for part in entry.name.lower().split("-"))
    ]
    best = max(known, key=lambda entry: len(entry.name), default=Device(name, free, gpu=True))
    return replace(best, name=name, memory=free)


def memory_of(text: str, known: Device | None = None) -> Device:
    """Return a machine of so much memory.

    Args:
        text: As of `parse_bytes`.
        known: What else is known of it.
    """
    memory = parse_bytes(text)
    if known is not None:
        return replace(known, memory=memory)
    return Device(f"a machine of {memory / GB:g} GB", memory)
