"""One case of section `plan`, in a process of its own: `python -m scripts.benchmarks.plan_case SPEC OUT`.

It imports what training imports, loads the backbone, takes some training steps and one evaluation batch, saves weights
and moments, and notes the highest resident memory of its life: memory-mapped weights count as far as they were read.
Then steps and the probe of the plan are timed in turn.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from climafuse.backbones import load_backbone
from climafuse.backbones.native import multiplies
from climafuse.backbones.quantization import Quantization
from climafuse.memory import release_memory
from climafuse.model import PrefixStore
from climafuse.planning import Workload, find_architecture, measure
from climafuse.planning.memory import reuses
from climafuse.planning.probe import Probe
from climafuse.planning.skeleton import make_batch, make_model
from climafuse.training.config import TrainingConfig
from climafuse.training.fitting import MODULES
from climafuse.training.optim import gradient_norms, make_optimizer, trainable_parts
from climafuse.training.rounding import RoundingAdamW
from climafuse.training.state import save_optimizer
from scripts.benchmarks.fusion import open_gates
from scripts.benchmarks.inputs import backbone_of
from scripts.benchmarks.measure import peak_gb

STEPS = 4  # before the peak is noted: moments are made in the first, and gaps of freed memory fill up


@dataclass(frozen=True)
class Case:
    """A run whose plan is compared with what it takes.

    Args:
        backbone: Name or directory.
        settings: Of `Workload`.
        repeats: Rounds of steps and probes.
    """

    backbone: str
    settings: dict[str, Any] = field(default_factory=dict)
    repeats: int = 5

    @property
    def path(self) -> Path | str:
        """Where the backbone is; of an architecture, random weights, written on the first call."""
        return backbone_of(self.backbone)

    def workload(self) -> Workload:
        """The workload; products are in the type that this machine multiplies, where the settings do not say."""
        found = find_architecture(str(self.path))
        native = multiplies(torch.bfloat16, torch.device("cpu"))
        settings = {"precision": "bfloat16" if native else "float32", **self.settings}
        return Workload(
            found.name,
            found.config,
            random_weights=found.random_weights,
            file_bytes=found.file_bytes,
            file_dtype=found.file_dtype,
            widened=settings.get("dtype") != "float32" and not native,
            optimizer=RoundingAdamW,
            **settings,
        )


def measure_case(case: Case) -> dict[str, Any]:
    """Train as the case says; returns peak memory, and seconds of steps and of probes in turn."""
    for name in MODULES:
        import_module(name)
    workload = case.workload()
    loaded = load_backbone(
        case.path,
        dtype=workload.dtype,
        quantization=cast("Quantization | None", workload.quantization),
        quantize_head=workload.quantize_head,
    )
    model = make_model(workload, loaded)
    open_gates(model)
    if reuses(workload, model):
        model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
        ids = make_batch(workload, workload.windows, labels=1)["input_ids"]
        model.prefix_store.add([tuple(text) for text in ids.tolist()])
    release_memory()  # as `training.pipeline` does before the steps
    optimizer = make_optimizer(model, TrainingConfig())
    parts = trainable_parts(model)
    trainable = [parameter for group in parts.values() for parameter in group]

    def step() -> float:
        begin = time.perf_counter()
        for _ in range(workload.accumulation):
            batch = make_batch(workload, workload.microbatch, labels=workload.labels)
            with torch.autocast("cpu", torch.bfloat16, enabled=workload.precision == "bfloat16"):
                loss = model(**batch).loss
            loss.backward()
            del loss, batch
        _, total = gradient_norms(parts)
        nn.utils.clip_grads_with_norm_(trainable, 1.0, total)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begin

    for _ in range(STEPS):
        step()
    if workload.evaluation_windows:
        model.eval()
        with torch.no_grad():
            batch = make_batch(workload, workload.evaluation_windows, labels=workload.all_labels)
            model(**batch, return_logits=False)
            del batch
        model.train()
    with tempfile.TemporaryDirectory() as folder:
        save_optimizer(Path(folder), optimizer, model)
        model.save_pretrained(folder)
    peak = peak_gb()
    footprint = measure(workload, phases=False)
    probe = Probe(workload, footprint)
    probe.round()
    step()
    seconds, rounds = [], []
    for _ in range(case.repeats):
        seconds.append(step())
        rounds.append(probe.round())
    return {
        **asdict(case),
        "peak_gb": peak,
        "seconds": statistics.median(seconds),
        "planned_seconds": probe.pace(rounds).seconds,
        "ratios": [probe.pace([found]).seconds / real for found, real in zip(rounds, seconds, strict=True)],
        "parts": probe.pace(rounds).parts,
    }


def main(spec: str, out: str) -> None:
    """Measure the case that a file describes, into another."""
    found = measure_case(Case(**json.loads(Path(spec).read_text(encoding="utf-8"))))
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
