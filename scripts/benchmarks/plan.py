"""What `climafuse plan` says, against what is measured: thirteen cases, each in a process of its own.

Peak resident memory is planned here, before the process of the case begins; the time of a step is that of the probe,
taken in turn with real steps in that process. Weights of architectures that are not on this machine are random and
written once to climafuse's cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from climafuse.planning import find_architecture
from climafuse.planning import plan as make_plan
from climafuse.training.fitting import MODULES
from scripts.benchmarks import own_process
from scripts.benchmarks.keeping import kept
from scripts.benchmarks.measure import Row, Size, quartiles
from scripts.benchmarks.plan_case import Case

PEAK_AIM, TIME_AIM = 0.05, 0.25
MEANING = (
    "planned ÷ measured: seconds of a training step (the probe of the plan in turn with real steps), peak resident "
    "memory of the process"
)
LIMIT = 1800  # seconds of a case


@dataclass(frozen=True)
class Planned:
    """A case of the table.

    Args:
        name: What it is.
        backbone: Name of a backbone or architecture.
        settings: Of its `Workload`.
    """

    name: str
    backbone: str
    settings: dict[str, Any]


_SMALL = "smollm2-135m-instruct"
TABLE: tuple[Planned, ...] = (
    Planned("SmolLM2-135M bf16, 1 × 32 at input", _SMALL, {"sites": "input"}),
    Planned(
        "SmolLM2-135M bf16, 8 × 2 × 64 at block 15, with evaluation",
        _SMALL,
        {"sites": [15], "windows": 8, "texts_per_window": 2, "length": 64, "evaluation_windows": 8},
    ),
    Planned(
        "SmolLM2-135M float32, 4 × 48, gated addition at input",
        _SMALL,
        {
            "dtype": "float32",
            "precision": "float32",
            "sites": "input",
            "fusion": "gated_addition",
            "windows": 4,
            "length": 48,
        },
    ),
    Planned(
        "SmolLM2-135M bf16, 16 × 6 × 40 at output, states stored",
        _SMALL,
        {
            "sites": "output",
            "windows": 16,
            "texts_per_window": 6,
            "length": 40,
            "reuse_prefix": True,
            "accumulation": 2,
        },
    ),
    Planned(
        "SmolLM2-135M int8, 8 × 32 at input, recomputed",
        _SMALL,
        {"sites": "input", "quantization": "int8", "windows": 8, "checkpoint_activations": True},
    ),
    Planned("gpt2-large bf16, 2 × 32 at input", "gpt2-large", {"sites": "input", "windows": 2}),
    Planned(
        "gpt2-large bf16, 4 × 64 at the last quarter",
        "gpt2-large",
        {"sites": [27], "windows": 4, "length": 64},
    ),
    *(
        Planned(
            f"opt-1.3b {kind or 'bf16'}, 1 × 32 at input",
            "opt-1.3b",
            {
                "sites": "input",
                "fusion_options": {"heads": 32},
                "quantization": kind,
                "quantize_head": kind is not None,
            },
        )
        for kind in (None, "int8", "int4")
    ),
    Planned(
        "opt-1.3b bf16, 16 × 2 × 32 at the last quarter, of which some windows are timed",
        "opt-1.3b",
        {"sites": [18], "windows": 16, "texts_per_window": 2, "fusion_options": {"heads": 32}},
    ),
    Planned(
        "SmolLM2-135M bf16, 4 × 2 × 32 at the output, all weights trained, rounded at random",
        _SMALL,
        {"sites": "output", "windows": 4, "texts_per_window": 2, "backbone_trainable": "all"},
    ),
    Planned(
        "SmolLM2-135M bf16, 4 × 2 × 32 at the output, adapters in the last ten blocks",
        _SMALL,
        {
            "sites": "output",
            "windows": 4,
            "texts_per_window": 2,
            "lora": {"rank": 8, "layers": {"last": 10}},
        },
    ),
)
SMALLEST = TABLE[:2]  # where it is only to be seen that it works


def rows(size: Size) -> Iterator[Row]:
    """Compare all cases."""
    for entry in TABLE if size.name == "full" else SMALLEST:
        case = Case(entry.backbone, entry.settings, size.repeats)
        measured = kept("plan", entry.name, asdict(case), size, lambda case=case: _measured(case))
        yield from _rows(entry.name, {**measured, **_planned(case)})


def compared(case: Case) -> dict[str, Any]:
    """Plan a case, and measure it."""
    return {**_planned(case), **_measured(case)}


def _planned(case: Case) -> dict[str, Any]:
    """What is planned: each time anew, as it takes seconds."""
    made = make_plan(
        case.workload(),
        modules=MODULES,
        tokenizer=find_architecture(str(case.path)).directory,
        time=False,
        search=False,
    )
    return {
        "planned_peak_gb": made.peak / 1e9,
        "peak_phase": made.peak_phase,
        "phases_gb": {phase: num / 1e9 for phase, num in made.phases.items()},
        "base_gb": made.base / 1e9,
        "footprint": asdict(made.footprint),
        "random_weights": made.random_weights,
    }


def _rows(name: str, found: dict[str, Any]) -> Iterator[Row]:
    """A row for the time, one for the peak."""
    labeled = ", random weights" if found["random_weights"] else ""
    times = tuple(found["ratios"])
    peak = found["planned_peak_gb"] / found["peak_gb"]
    for what, ratios, aim in (("seconds", times, TIME_AIM), ("peak", (peak,), PEAK_AIM)):
        ratio = statistics.median(ratios)
        yield Row(
            section="plan",
            case=f"{name}{labeled}: {what}",
            ratio=ratio,
            spread=quartiles(ratios),
            aim=f"{1 - aim:.2f} to {1 + aim:.2f}",
            reached=abs(ratio - 1) <= aim,
            seconds=found["seconds"],
            reference_seconds=found["planned_seconds"],
            rate=1 / found["seconds"],
            unit="steps/s",
            peak_gb=found["peak_gb"],
            repeats=len(ratios),
            meaning=MEANING,
            details=found,
            measured=found["measured"],
        )


def _measured(case: Case) -> dict[str, Any]:
    return own_process.measure("scripts.benchmarks.plan_case", asdict(case), limit=LIMIT)
