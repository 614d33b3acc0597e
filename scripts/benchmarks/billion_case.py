"""One case of section `billions`, in a process of its own: `python -m scripts.benchmarks.billion_case SPEC OUT`.

`step` measures training steps, `together` steps of several models that are loaded at once, `generate` generation. What
happens in `step`, in this order, so that each peak is that of what it is said to be of:

1. The backbone is loaded in its form, and the model made: peak while loading.
2. Frozen weights are hashed, and their pages let go of.
3. Twenty training steps on real pairs, AdamW on all that is trained: seconds, loss on four of the pairs before and
   after, peak while training, and that each block ran in each step.
4. Frozen weights are hashed again.
5. Steps in turn with the floor: the bare bfloat16 backbone's forward, and backward down to the states that enter the
   first fused position, same tokens. For a bfloat16 case it is the same memory. Beside a quantized one, the floor has
   as many blocks, but where memory is short only some of them are distinct and used in turn; they are as large as ever
   against the processor's cache, so each is read from memory as if it were another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from climafuse.backbones import LoadedBackbone, find_blocks, hash_parameters, load_backbone
from climafuse.backbones.mapped_files import MappedFiles
from climafuse.backbones.quantization import Quantization
from climafuse.memory import memory_state
from climafuse.model import ClimateTextForCausalLM
from climafuse.training.config import RunConfig, load_config
from climafuse.training.dataset import ExampleCollator
from climafuse.training.optim import gradient_norms, make_optimizer, trainable_parts
from climafuse.training.pipeline import assemble
from climafuse.training.precision import products
from scripts.benchmarks import generate
from scripts.benchmarks.fusion import floor, open_gates
from scripts.benchmarks.inputs import backbone_of
from scripts.benchmarks.keeping import say
from scripts.benchmarks.measure import Comparison, Size, compare, peak_gb, quartiles, reset_peak

CLIMATE_STEPS = 4
STEPS = 20
PAIRS_ASKED = 4  # of the loss before and after
RESERVE = 2e9  # bytes left free beside a floor that is loaded in addition


@dataclass(frozen=True)
class Case:
    """A model whose steps are measured.

    Args:
        backbone: Name of an architecture, or directory of a backbone.
        fusion: Fusion at the input.
        options: Its arguments.
        quantization: Of the blocks; None for bfloat16.
        quantize_head: Whether the head is quantized, too.
        steps: Training steps.
        repeats: Rounds of the comparison.
        tokens: Of a text; shorter ones are padded, longer ones not taken.
    """

    backbone: str
    fusion: str
    options: dict[str, Any]
    quantization: Quantization | None = None
    quantize_head: bool = False
    steps: int = STEPS
    repeats: int = 5
    tokens: int = 32


def measure_step(case: Case) -> dict[str, Any]:
    """Measure training steps; see the module."""
    base = peak_gb()
    start = time.perf_counter()
    loaded = load_backbone(
        backbone_of(case.backbone),
        quantization=case.quantization,
        quantize_head=case.quantize_head,
        progress=say,
    )
    seconds_to_load = time.perf_counter() - start
    setup = assemble(_config(case), backbone=loaded, say=say)
    model = setup.model.train()
    open_gates(model)
    loading_peak = peak_gb()
    batches = _batches(setup, case.steps, case.tokens)
    before = hash_parameters(loaded.model)
    _let_go(loaded.model)
    reset_peak()
    step = _trained_step(model, setup.config)
    with _counted(loaded) as runs:
        first = _loss(model, batches[:PAIRS_ASKED])
        runs.clear()
        seconds = []
        for number, batch in enumerate(batches):
            begin = time.perf_counter()
            step(batch)
            seconds.append(time.perf_counter() - begin)
            say(f"step {number + 1} of {case.steps}: {seconds[-1]:.2f} s")
        counted = dict(runs)
        last = _loss(model, batches[:PAIRS_ASKED])
    training_peak = peak_gb()
    unchanged = hash_parameters(loaded.model) == before
    num_blocks = find_blocks(loaded.model).num_blocks
    bare, distinct = _bare(case, loaded)
    found: Comparison = compare(
        lambda: step(batches[0]), floor(bare, "input", batches[0]), repeats=case.repeats, warmup=1
    )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        **dataclasses.asdict(case),
        "random_weights": loaded.identity["random_weights"],
        "parameters": loaded.identity["num_parameters"],
        "trainable": trainable,
        "weight_bytes": sum(p.nbytes for p in loaded.model.parameters())
        + sum(b.nbytes for b in loaded.model.buffers()),
        "ratio": found.ratio,
        "ratios": list(found.ratios),
        "spread": list(quartiles(found.ratios)),
        "seconds": found.seconds,
        "floor_seconds": found.reference_seconds,
        "distinct_floor_blocks": distinct,
        "disk_reads": list(found.disk_reads),
        "blocks": num_blocks,
        "blocks_run_a_step": sum(counted.values()) / case.steps,
        "every_block_ran": sorted(counted) == list(range(num_blocks)),
        "step_seconds": seconds,
        "loss_before": first,
        "loss_after": last,
        "frozen_unchanged": unchanged,
        "base_gb": base,
        "loading_peak_gb": loading_peak,
        "training_peak_gb": training_peak,
        "peak_gb": max(loading_peak, training_peak),
        "seconds_to_load": seconds_to_load,
        "climate_steps": CLIMATE_STEPS,
    }


def settings(case: Case) -> list[str]:
    """A run of a case, as `--set` takes it."""
    return [
        f"backbone.name={json.dumps(str(backbone_of(case.backbone)))}",
        f"fusion.name={case.fusion}",
        "fusion.sites=input",
        f"fusion.options={json.dumps(case.options)}",
        f"data.history={CLIMATE_STEPS}",
        "data.fractions=[0.5, 0.25, 0.25]",  # of 24 times, so that each split has a history of four
        "training.windows_per_step=1",
        "facts.questions_per_window=1",
        "training.labels_decided_by_words=1",
        "training.sampled_vocabulary=null",
        "training.learning_rate=1e-3",
    ]


def _config(case: Case) -> RunConfig:
    return load_config(None, [*settings(case), f"data.train_windows={4 * case.steps}"])


def _batches(setup: Any, count: int, tokens: int) -> list[dict[str, Tensor]]:
    """Real pairs about real windows, one a batch, each text padded to the same length."""
    collate = ExampleCollator(setup.processor)
    batches = []
    for example in setup.train:
        batch = {k: v for k, v in collate([example]).items() if isinstance(v, Tensor) and k != "sample"}
        length = batch["input_ids"].shape[1]
        if len(batch["input_ids"]) == 1 and length <= tokens:
            fill = {"input_ids": setup.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
            for name, value in fill.items():
                batch[name] = nn.functional.pad(batch[name], (0, tokens - length), value=value)
            batches.append(batch)
        if len(batches) == count:
            return batches
    raise RuntimeError(f"only {len(batches)} of {len(setup.train)} texts have at most {tokens} tokens")


def _trained_step(model: ClimateTextForCausalLM, config: RunConfig) -> Callable[[dict[str, Tensor]], Tensor]:
    """A training step as the trainer takes it: products in its type, gradient norms, clipping, AdamW."""
    optimizer = make_optimizer(model, config.training)
    parts = trainable_parts(model)
    trainable = [parameter for group in parts.values() for parameter in group]

    def step(batch: dict[str, Tensor]) -> Tensor:
        with products("auto", torch.device("cpu")):
            loss = cast("Tensor", model(**batch).loss)
        loss.backward()
        _, total = gradient_norms(parts)
        nn.utils.clip_grads_with_norm_(trainable, 1.0, total)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


@torch.no_grad()
def _loss(model: ClimateTextForCausalLM, batches: list[dict[str, Tensor]]) -> float:
    """Mean loss of a label, over the whole vocabulary."""
    sums = [
        (
            model(**batch).loss.item() * int((batch["labels"] != -100).sum()),
            int((batch["labels"] != -100).sum()),
        )
        for batch in batches
    ]
    return sum(loss for loss, _ in sums) / sum(count for _, count in sums)


@contextlib.contextmanager
def _counted(loaded: LoadedBackbone) -> Iterator[dict[int, int]]:
    """Count how often each block runs while this lasts."""
    runs: dict[int, int] = {}

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            runs[number] = runs.get(number, 0) + 1

        return hook

    handles = [
        block.register_forward_hook(count(number))
        for number, block in enumerate(find_blocks(loaded.model).blocks)
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def _bare(case: Case, loaded: LoadedBackbone) -> tuple[LoadedBackbone, int]:
    """The bfloat16 backbone for the floor, and how many of its blocks are distinct."""
    blocks = find_blocks(loaded.model).blocks
    if case.quantization is None:
        return loaded, len(blocks)
    gc.collect()
    plain = load_backbone(backbone_of(case.backbone), progress=say)
    own = find_blocks(plain.model).blocks
    size = sum(parameter.nbytes for parameter in own[0].parameters())
    head = sum(parameter.nbytes for parameter in plain.model.get_output_embeddings().parameters())
    state = memory_state()
    room = (0 if state is None else state.room) - RESERVE - head
    distinct = max(min(int(room // size), len(own)), min(4, len(own)))
    for number in range(distinct, len(own)):
        # The first stands once: where it is entered, the gradient ends.
        own[number] = own[1 + (number - distinct) % (distinct - 1)]
    return plain, distinct


def _let_go(model: nn.Module) -> None:
    """Let go of what hashing has read of mapped files."""
    mapped = MappedFiles()
    for parameter in model.parameters():
        mapped.let_go(parameter)


def measure_together(cases: list[Case]) -> dict[str, Any]:
    """Load several models at once and take one step with each.

    Returns:
        Bytes of all weights, losses, the peak of the process, and whether hashes of frozen weights are the same after.
    """
    weights, trainable, losses, held, before = 0, 0, [], [], []
    for case in cases:
        loaded = load_backbone(backbone_of(case.backbone), quantization=case.quantization, progress=say)
        setup = assemble(_config(case), backbone=loaded, say=say)
        model = setup.model.train()
        open_gates(model)
        before.append(hash_parameters(loaded.model))
        _let_go(loaded.model)
        held.append((loaded.model, _trained_step(model, setup.config), _batches(setup, 1, case.tokens)[0]))
        weights += sum(p.nbytes for p in loaded.model.parameters())
        trainable += sum(p.numel() for p in model.parameters() if p.requires_grad)
    start = time.perf_counter()
    for _, step, batch in held:
        losses.append(float(step(batch)))
    seconds = time.perf_counter() - start
    peak = peak_gb()
    return {
        "frozen_unchanged": [hash_parameters(backbone) for backbone, _, _ in held] == before,
        "weight_bytes": weights,
        "trainable": trainable,
        "losses": losses,
        "seconds": seconds,
        "peak_gb": peak,
    }


def measure_generate(case: Case, new_tokens: int) -> dict[str, Any]:
    """Compare generation with climate and without."""
    loaded = load_backbone(
        backbone_of(case.backbone),
        quantization=case.quantization,
        quantize_head=case.quantize_head,
        progress=say,
    )
    size = Size("billions", repeats=case.repeats, new_tokens=new_tokens)
    return generate.row(size, loaded, case.fusion, "input", 1, **case.options).to_dict()


def measure(kind: str, content: Any) -> dict[str, Any]:
    """Measure what a specification asks for.

    Args:
        kind: `step`, `together` or `generate`.
        content: Its arguments, as JSON gives them.
    """
    if kind == "step":
        return measure_step(Case(**content))
    if kind == "together":
        return measure_together([Case(**case) for case in content])
    return measure_generate(Case(**content["case"]), content["new_tokens"])


def main(spec: str, out: str) -> None:
    """Measure what one file asks for, and write what was found to another."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    result = measure(**json.loads(Path(spec).read_text(encoding="utf-8")))
    Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
