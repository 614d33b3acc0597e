"""Two ways to do a thing, timed in turn: A B, B A, A B and so on.

Another process that slows this one down slows both sides of a round, so the ratio of a round holds where its seconds
do not. Reported are medians over rounds; the spread is the quartiles of the rounds' ratios.
"""

from __future__ import annotations

import dataclasses
import gc
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Size:
    """How much is measured, on what.

    Args:
        name: Of the size, for the record.
        repeats: Rounds of each comparison.
        warmup: Rounds before them that do not count: first calls allocate, and choose their kernels.
        backbone: What `load_backbone` takes; "mock" for a random one.
        texts: Texts in a training step.
        tokens: Tokens in a text.
        new_tokens: Tokens generated for each prompt.
        windows: Windows read in a round from the store; plain xarray reads a tenth of them.
        batches: Batches of the mock loops in a round.
        steps: Times of the store that is prepared.
        pairs: Pairs about it.
        kept: Folder for results of long sections; None for climafuse's cache.
    """

    name: str
    repeats: int
    warmup: int = 1
    backbone: str = "smollm2-135m-instruct-q4_1"
    texts: int = 8
    tokens: int = 48
    new_tokens: int = 32
    windows: int = 480
    batches: int = 150
    steps: int = 19_800
    pairs: int = 100_000
    kept: Path | None = None


FULL = Size("full", repeats=7)
QUICK = Size("quick", repeats=3, new_tokens=16, windows=160, batches=60, steps=400, pairs=4_000)


@dataclass(frozen=True)
class Comparison:
    """What two sides took.

    Args:
        seconds: Median of the measured side.
        reference_seconds: Median of the reference.
        ratios: Measured ÷ reference seconds, one a round.
        peak_gb: Highest resident memory of the process while the measured side ran, all it held before included.
        disk_reads: How often one side and the other waited for a page from the disk: what is mapped and was dropped.
    """

    seconds: float
    reference_seconds: float
    ratios: tuple[float, ...]
    peak_gb: float
    disk_reads: tuple[int, int]

    @property
    def ratio(self) -> float:
        """Median ratio of seconds."""
        return statistics.median(self.ratios)

    def inverse(self) -> tuple[float, ...]:
        """Ratios of speeds: how many times as fast the measured side is."""
        return tuple(1 / ratio for ratio in self.ratios)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        section: Name of the section.
        case: What was measured.
        ratio: Median over rounds; `meaning` says of what.
        spread: First and third quartile of the rounds' ratios.
        aim: What is wanted, such as "<= 1.10"; None where nothing is.
        reached: Whether it is; None without an aim.
        seconds: Median time of one unit of the measured side: a step, a call, a sample, a batch.
        reference_seconds: The same of what it is compared with.
        rate: What is done a second.
        unit: Of the rate.
        peak_gb: See `Comparison`.
        repeats: Number of rounds.
        meaning: Of the ratio.
        details: More figures, for the JSON file.
        measured: When and how, of a row that was kept (`keeping`).
    """

    section: str
    case: str
    ratio: float
    spread: tuple[float, float]
    aim: str | None
    reached: bool | None
    seconds: float
    reference_seconds: float
    rate: float
    unit: str
    peak_gb: float
    repeats: int
    meaning: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    measured: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**dataclasses.asdict(self), "spread": list(self.spread)}


def compare(
    measured: Callable[[], object], reference: Callable[[], object], *, repeats: int, warmup: int
) -> Comparison:
    """Time two functions in turn.

    Args:
        measured: The one in question.
        reference: What it is compared with.
        repeats: Rounds.
        warmup: Rounds before them that do not count.
    """
    for _ in range(warmup):
        measured()
        reference()
    first: list[float] = []
    second: list[float] = []
    peak = 0.0
    waits = [0, 0]

    def timed(side: int, function: Callable[[], object]) -> float:
        before = _disk_reads()
        seconds = _seconds(function)
        waits[side] += _disk_reads() - before
        return seconds

    gc.collect()
    gc.disable()  # a collection would fall on one side
    try:
        for number in range(repeats):
            if number % 2:
                second.append(timed(1, reference))
            reset_peak()
            first.append(timed(0, measured))
            peak = max(peak, peak_gb())
            if not number % 2:
                second.append(timed(1, reference))
    finally:
        gc.enable()
    ratios = tuple(one / other for one, other in zip(first, second, strict=True))
    return Comparison(statistics.median(first), statistics.median(second), ratios, peak, (waits[0], waits[1]))


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    """First and third quartile; the value itself where there is only one."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


class Seconds(float):
    """What a function returns that times itself, because not all it does is meant to count."""


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = function()
    return float(result) if isinstance(result, Seconds) else time.perf_counter() - start


def _disk_reads() -> int:
    """Major page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def reset_peak() -> None:
    """Let the peak of resident memory begin anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # elsewhere `peak_gb` is the peak since the process began
        return


def peak_gb(process: int | None = None) -> float:
    """Highest resident memory of this process in GB: since `reset_peak` on Linux, elsewhere since it began.

    Args:
        process: Another one (Linux only).
    """
    try:
        status = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 0.0 if found is None else int(found[1]) * 1024 / 1e9
