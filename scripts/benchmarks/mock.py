"""The pace of the training loop at mock scale: about 2.9 million parameters, two windows a step.

A Llama-like language model of random weights (two blocks, width 256, frozen), the small convolutional encoder and a
gated addition, in the shapes of an earlier system's mock run: two steps of 16 by 16 cells, texts of 32 tokens. Weights
are random and the texts mean nothing, so this tells of capacity and overhead only, not of any skill. The fusion sits
at the output, as by default and as in that earlier system.

The step alone, on batches made beforehand (forward, backward, clipping, fused AdamW), against its floor (see `fusion`);
and `ClimateTextTrainer` with everything it does in a real run: data order, collation, checks that loss and gradients
are finite, norms by part, the schedule, JSONL and TensorBoard logs. Its time is taken from the end of a step to the end
of a later one, so making the trainer and saving the model are not in it. Once every block runs at every step, once with
stored states of the texts, which is how a run trains by default.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.trainer_callback import TrainerCallback

from climafuse.backbones import Site
from climafuse.data.pairs import Pair
from climafuse.model import ClimateTextForCausalLM, ClimateTextProcessor, PrefixStore
from climafuse.training.config import OutputConfig, RunConfig, TrainingConfig
from climafuse.training.dataset import Example, ExampleCollator, ExampleDataset
from climafuse.training.nonfinite import SAMPLE_KEY
from climafuse.training.optim import make_optimizer
from climafuse.training.trainer import ClimateTextTrainer
from scripts.benchmarks.fusion import floor
from scripts.benchmarks.inputs import HISTORY, MOCK, backbone, store, windows
from scripts.benchmarks.measure import Comparison, Row, Seconds, Size, compare, quartiles

AIM = 60.0
BATCH = 2
WINDOWS = 64
WARMUP_STEPS = 10  # of a trainer's run, not timed
SITE: Site = "output"
PROMPT, ANSWERS = "t2m?", ("8 kelvin", "13 degr.", "-5 degr.", "22 degr.")  # 32 bytes with the frame
LOOP = "seconds of a step ÷ seconds of the floor: bare forward, and backward down to the site"
TRAINER = "seconds of a batch in the trainer ÷ seconds of the step alone"


def rows(size: Size) -> Iterator[Row]:
    """Measure both loops."""
    examples = [
        Example("train", number, window, (_pair(number),)) for number, window in enumerate(windows(WINDOWS))
    ]
    for reuse in (False, True):
        model, collate = _mock(reuse=reuse)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        case = f"{millions:.1f} M random weights, batch {BATCH}" + (", prefix reuse" if reuse else "")
        batches = [collate(examples[first : first + BATCH]) for first in range(0, len(examples), BATCH)]
        step = step_loop(model, batches, size.batches)
        if not reuse:
            found = compare(
                step, _floor_loop(batches, size.batches), repeats=size.repeats, warmup=size.warmup
            )
            yield _row(f"step alone: {case}", found, size.batches, LOOP)
        run = trainer_loop(examples, size.batches, reuse=reuse)
        found = compare(run, step, repeats=size.repeats, warmup=size.warmup)
        yield _row(f"trainer: {case}", found, size.batches, TRAINER)


def step_loop(model: ClimateTextForCausalLM, batches: list[dict[str, Any]], num: int) -> Callable[[], None]:
    """Return a loop of training steps over batches, and again over them."""
    settings = TrainingConfig()
    optimizer = make_optimizer(model, settings)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inputs = [{name: value for name, value in batch.items() if name != SAMPLE_KEY} for batch in batches]

    def loop() -> None:
        for batch in islice(cycle(inputs), num):
            model(**batch).loss.backward()
            nn.utils.clip_grad_norm_(trainable, settings.max_gradient_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad()

    return loop


def trainer_loop(examples: list[Example], num: int, *, reuse: bool) -> Callable[[], Seconds]:
    """Return a run of the real trainer, from an untrained model."""

    def run() -> Seconds:
        model, collate = _mock(reuse=reuse)
        stopwatch = _Stopwatch(WARMUP_STEPS, WARMUP_STEPS + num)
        with tempfile.TemporaryDirectory() as folder:
            steps = WARMUP_STEPS + num
            config = RunConfig(
                training=TrainingConfig(steps=steps, windows_per_step=BATCH, sampled_vocabulary=None),
                output=OutputConfig(directory=folder, save_interval=steps),
            )
            ClimateTextTrainer(
                model,
                config,
                train_dataset=ExampleDataset(examples),
                data_collator=collate,
                callbacks=[stopwatch],
                progress=False,
            ).train()
        return stopwatch.seconds

    return run


class _Stopwatch(TrainerCallback):
    """Takes the time from the end of one step to the end of another."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.seconds = Seconds("nan")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.first:
            self._start = time.perf_counter()
        elif state.global_step == self.last:
            self.seconds = Seconds(time.perf_counter() - self._start)


def _floor_loop(batches: list[dict[str, Any]], num: int) -> Callable[[], None]:
    steps = [floor(backbone(MOCK), SITE, batch) for batch in batches]

    def loop() -> None:
        for step in islice(cycle(steps), num):
            step()

    return loop


def _mock(*, reuse: bool) -> tuple[ClimateTextForCausalLM, ExampleCollator]:
    torch.manual_seed(0)
    model = ClimateTextForCausalLM.from_backbone(
        backbone(MOCK),
        statistics=store().statistics,
        encoder="conv",
        encoder_options={"width": 160},
        fusion="gated_addition",
        sites=[SITE],
        history=HISTORY,
    ).train()
    if reuse:
        model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
    return model, ExampleCollator(ClimateTextProcessor.of(model.config, model.tokenizer))


def _pair(number: int) -> Pair:
    time_ = np.datetime64("2026-03-25", "s")
    return Pair((time_, time_), None, PROMPT, ANSWERS[number % len(ANSWERS)], sample=number)


def _row(case: str, found: Comparison, num: int, meaning: str) -> Row:
    rate = num / found.seconds
    return Row(
        section="mock",
        case=case,
        ratio=found.ratio,
        spread=quartiles(found.ratios),
        aim=f">= {AIM:.0f} batches/s",
        reached=rate >= AIM,
        seconds=found.seconds / num,
        reference_seconds=found.reference_seconds / num,
        rate=rate,
        unit="batches/s",
        peak_gb=found.peak_gb,
        repeats=len(found.ratios),
        meaning=meaning,
    )
