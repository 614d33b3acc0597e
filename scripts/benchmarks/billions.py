"""Frozen backbones of 0.8 to 8 billion parameters on this machine: a step against its floor, and what it holds.

Weights are random (`climafuse backbone synthesize`): what is measured is capacity, that is time and memory, which do
not depend on their values. They are written once to climafuse's cache, 34 GB in all for the full size. Every case runs
in a process of its own, and what was measured is kept (`keeping`; `--fresh` measures anew). Loss is measured on real
pairs about real fields; it falls as the fusion learns which words come often.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from climafuse.data.files import cache_directory
from climafuse.model.folder import WEIGHTS_FILE
from climafuse.training.config import load_config
from scripts.benchmarks import billion_case, own_process
from scripts.benchmarks.billion_case import STEPS, Case
from scripts.benchmarks.keeping import kept
from scripts.benchmarks.measure import Row, Size

STEP_MEANING = (
    "seconds of a fused training step (1 text of 32 tokens, 4 climate steps, fusion at the input, all blocks run, "
    "AdamW) ÷ seconds of the bare bfloat16 backbone forward and back down to the first fused position; peak: resident "
    "memory ÷ what is allowed; others as named. Random weights: capacity only"
)
RUN_STEPS = 30  # of the run that is killed and resumed
SAVE_INTERVAL = 5
# Rounds of the largest: one takes half a minute, in which a shared machine may become twice as slow or as fast, so that
# a median of few is of those rounds.
MANY = 7
NEW_TOKENS = 8  # generated in such a round, for the same reason


@dataclass(frozen=True)
class Billion:
    """A case of the table.

    Args:
        architecture: Name of the backbone.
        fusion: Registered name of the fusion.
        options: Its arguments.
        aim: Most that a step may take, as a ratio to the floor.
        peak_gb: Most resident memory; None for 1.15 × (weights + 16 bytes × trainables + 0.5 GB).
        quantization: Of the blocks.
        repeats: Rounds of the comparison, at most.
    """

    architecture: str
    fusion: str
    options: dict[str, Any]
    aim: float
    peak_gb: float | None = None
    quantization: Any = None
    repeats: int = 5

    @property
    def name(self) -> str:
        """As the table says."""
        heads = f" ({self.options['heads']} heads)" if "heads" in self.options else ""
        return f"{self.architecture} {self.quantization or 'bf16'}, {self.fusion}{heads}"

    def case(self, size: Size) -> Case:
        """What its process measures."""
        quick = size.name != "full"
        return Case(
            backbone=self.architecture,
            fusion=self.fusion,
            options=self.options,
            quantization=self.quantization,
            quantize_head=self.quantization == "int4",  # else it is a seventh of what is held
            steps=min(STEPS, 4) if quick else STEPS,
            repeats=min(size.repeats, self.repeats),
        )


def _heads(number: int, width: int) -> dict[str, Any]:
    return {"heads": number, "head_width": width}


_LLAMA_HEADS = _heads(32, 128)
TABLE: tuple[Billion, ...] = (
    Billion("llama-3-8b", "gated_addition", {}, 1.05, 17.5, repeats=MANY),
    Billion("llama-3-8b", "cross_attention", _LLAMA_HEADS, 1.15, 18.5, repeats=MANY),
    Billion("llama-3-8b", "cross_attention", _LLAMA_HEADS, 1.5, 10.6, "int8", MANY),
    Billion("llama-3-8b", "cross_attention", _LLAMA_HEADS, 3.0, 7.0, "int4", MANY),
    *(
        Billion(name, fusion, options, 1.15)
        for name, heads in (
            ("gpt2-large", _heads(20, 64)),
            ("gpt2-xl", _heads(25, 64)),
            ("dialogpt-large", _heads(20, 64)),
            ("opt-1.3b", _heads(32, 64)),
            ("gpt-neo-1.3b", _heads(16, 128)),
            ("llama-3.2-3b", _heads(24, 128)),
        )
        for fusion, options in (("gated_addition", {}), ("cross_attention", heads))
    ),
)
TOGETHER = ("gpt2-xl", "dialogpt-large", "gpt-neo-1.3b")
LARGEST = TABLE[2]  # the one that generates, and whose run is killed
SMALLEST = TABLE[4:6]  # where it is only to be seen that it works


def rows(size: Size) -> Iterator[Row]:
    """Measure the table, three models together, generation, a killed run, and the time to the first step."""
    full = size.name == "full"
    for entry in TABLE if full else SMALLEST:
        yield from _step_rows(entry, size)
    if full:
        yield _together_row(size)
    largest = LARGEST if full else SMALLEST[-1]
    yield _generate_row(largest, size)
    yield from _run_rows(largest, size)


# ---- Rows


def _step_rows(entry: Billion, size: Size) -> Iterator[Row]:
    found = _kept(entry.name, {"kind": "step", "content": dataclasses.asdict(entry.case(size))}, size)
    allowed = entry.peak_gb or 1.15 * ((found["weight_bytes"] + 16 * found["trainable"]) / 1e9 + 0.5)
    details = {name: value for name, value in found.items() if name not in ("seconds", "ratio", "spread")}
    sound = found["frozen_unchanged"] and found["every_block_ran"]
    yield _row(
        entry.name,
        found["ratio"],
        entry.aim,
        spread=found["spread"],
        seconds=found["seconds"],
        reference=found["floor_seconds"],
        rate=found["tokens"] / found["seconds"],
        unit="text tokens/s",
        peak=found["peak_gb"],
        repeats=len(found["ratios"]),
        details=details,
        measured=found["measured"],
        sound=sound,
    )
    frozen = "unchanged" if found["frozen_unchanged"] else "CHANGED"
    ran = "ran" if found["every_block_ran"] else "did NOT all run"
    yield _row(
        f"{entry.name}: peak ÷ {allowed:.1f} GB; {found['blocks']} blocks {ran}, hash of frozen weights {frozen}",
        found["peak_gb"] / allowed,
        1.0,
        seconds=found["seconds"],
        peak=found["peak_gb"],
        rate=(found["loss_before"] - found["loss_after"]),
        unit=f"nats of loss in {len(found['step_seconds'])} steps",
        details={"allowed_gb": allowed, "frozen_unchanged": found["frozen_unchanged"]},
        measured=found["measured"],
        sound=sound,
    )


def _together_row(size: Size) -> Row:
    cases = [entry.case(size) for entry in TABLE if entry.architecture in TOGETHER and entry.options]
    content = [dataclasses.asdict(case) for case in cases]
    found = _kept("together", {"kind": "together", "content": content}, size)
    allowed = 1.1 * found["weight_bytes"] / 1e9 + 1
    return _row(
        f"{' + '.join(TOGETHER)} together: peak ÷ {allowed:.1f} GB; hash of frozen weights "
        + ("unchanged" if found["frozen_unchanged"] else "CHANGED"),
        found["peak_gb"] / allowed,
        1.0,
        seconds=found["seconds"],
        peak=found["peak_gb"],
        rate=len(cases) / found["seconds"],
        unit="steps/s",
        details=found,
        measured=found["measured"],
        sound=found["frozen_unchanged"],
    )


def _generate_row(entry: Billion, size: Size) -> Row:
    content = {"case": dataclasses.asdict(entry.case(size)), "new_tokens": NEW_TOKENS}
    found = _kept(f"{entry.name}, generate", {"kind": "generate", "content": content}, size)
    return _row(
        f"{entry.name}: generation with climate ÷ bare, tokens/s",
        found["ratio"],
        -0.95,
        spread=found["spread"],
        seconds=found["seconds"],
        reference=found["reference_seconds"],
        rate=found["rate"],
        unit=found["unit"],
        peak=found["peak_gb"],
        repeats=found["repeats"],
        measured=found["measured"],
    )


def _run_rows(entry: Billion, size: Size) -> Iterator[Row]:
    case = dataclasses.replace(entry.case(size), repeats=1)  # there is nothing to repeat
    spec = {"kind": "run", "content": dataclasses.asdict(case)}
    found = _kept(f"{entry.name}, run", spec, size)
    details = {name: value for name, value in found.items() if name != "peak_gb"}
    yield _row(
        f"{entry.name}: killed after {found['killed_after']:.0f} s and resumed, share of equal tensors and losses",
        found["identical"],
        -1.0,
        seconds=found["seconds"],
        peak=found["peak_gb"],
        rate=RUN_STEPS / found["seconds"],
        unit="steps/s",
        details=details,
        measured=found["measured"],
    )
    yield _row(
        f"{entry.name}: seconds from the command to the end of the first step ÷ 90",
        found["first_step"] / 90,
        1.0,
        seconds=found["first_step"],
        peak=found["peak_gb"],
        rate=1 / found["first_step"],
        unit="starts/s",
        measured=found["measured"],
    )


def _row(
    case: str,
    ratio: float,
    aim: float,
    *,
    seconds: float,
    peak: float,
    rate: float,
    unit: str,
    spread: Sequence[float] | None = None,
    reference: float = 0.0,
    repeats: int = 1,
    details: dict[str, Any] | None = None,
    measured: str = "",
    sound: bool = True,
) -> Row:
    """A row; a negative aim is one that the ratio shall not fall below. What is not sound has reached nothing."""
    low, high = spread if spread is not None else (ratio, ratio)
    return Row(
        section="billions",
        case=case,
        ratio=ratio,
        spread=(low, high),
        aim=f"<= {aim:.2f}" if aim > 0 else f">= {-aim:.2f}",
        reached=sound and (ratio <= aim if aim > 0 else ratio >= -aim),
        seconds=seconds,
        reference_seconds=reference,
        rate=rate,
        unit=unit,
        peak_gb=peak,
        repeats=repeats,
        meaning=STEP_MEANING,
        details=details or {},
        measured=measured,
    )


# ---- Measuring, once


def _kept(name: str, spec: dict[str, Any], size: Size) -> dict[str, Any]:
    """What was measured for this specification before; else what is measured now."""
    return kept("billions", name, spec, size, lambda: _measured(spec))


def _measured(spec: dict[str, Any]) -> dict[str, Any]:
    place = (
        cache_directory() / "benchmarks"
    )  # not /tmp, which may be memory: a run saves its weights and moments
    place.mkdir(parents=True, exist_ok=True)
    if spec["kind"] == "run":
        with tempfile.TemporaryDirectory(dir=place) as folder:
            return _killed_run(Case(**spec["content"]), Path(folder))
    return own_process.measure("scripts.benchmarks.billion_case", spec, place=place)


def _killed_run(case: Case, folder: Path) -> dict[str, Any]:
    """A run as a user starts it, whole; and the same, killed at a random moment and resumed."""
    settings = [
        f"backbone.quantization={case.quantization or 'null'}",
        f"training.steps={RUN_STEPS}",
        f"training.evaluation_interval={RUN_STEPS}",
        "data.train_windows=60",
        "data.validation_windows=2",
        "training.gap_windows=0",
        "training.logging_interval=1",
        f"output.save_interval={SAVE_INTERVAL}",
        "output.overwrite=true",
        "output.tensorboard=false",
        *billion_case.settings(case),
    ]
    load_config(None, settings)  # refused here, where it is seen
    whole, killed = folder / "whole", folder / "killed"
    start = time.perf_counter()
    first_step = _train(whole, settings)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    _train(killed, settings, kill_in_step=random.SystemRandom().uniform(0.2, 0.8) * RUN_STEPS)
    moment = time.perf_counter() - start
    done = _steps(killed)
    _train(killed, settings, resume=True)
    one, other = (load_file(path / "model" / WEIGHTS_FILE) for path in (whole, killed))
    losses = [_losses(path) for path in (whole, killed)]
    equal = [torch.equal(one[name], other[name]) for name in one]
    equal += [left == right for left, right in zip(*losses, strict=True)]
    return {
        "identical": sum(equal) / len(equal),
        "killed_after": moment,
        "killed_after_steps": done,
        "first_step": first_step,
        "seconds": seconds,
        "losses": losses[0],
        "peak_gb": max(json.loads(line).get("peak_memory_gb", 0) for line in _lines(whole)),
    }


def _train(
    output: Path, settings: Sequence[str], *, kill_in_step: float | None = None, resume: bool = False
) -> float:
    """Train, and kill it 0.3 of a step after the seventh if told 7.3; returns the seconds to the end of the first."""
    log = output / "log.jsonl"
    if not resume:
        log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "climafuse", "train", "--output", str(output)]
    command += ["--resume"] if resume else []
    command += [part for setting in settings for part in ("--set", setting)]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    first = 0.0
    while process.poll() is None:
        steps = _steps(output)
        if not first and steps:
            first = time.perf_counter() - start
        if kill_in_step is not None and steps >= max(int(kill_in_step), 2):
            a_step = (time.perf_counter() - start - first) / (steps - 1)
            time.sleep(kill_in_step % 1 * a_step)
            process.kill()
            if process.wait() == -signal.SIGKILL:
                return first
            break  # it ended by itself before
        time.sleep(0.02)
    if process.returncode or kill_in_step is not None:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return first


def _lines(output: Path) -> list[str]:
    return (output / "log.jsonl").read_text(encoding="utf-8").splitlines()


def _steps(output: Path) -> int:
    log = output / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0  # a line may be half written


def _losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in map(json.loads, _lines(output)) if "loss" in entry]
