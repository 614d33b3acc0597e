"""Out of memory does not end a run: microbatches are halved, and the step is done again.

Where a forward or backward pass finds no memory, the gradients of the step so far are dropped, random numbers set back
to where they stood before it, and its windows go through the model in microbatches of half as many. The loss is a sum
over the answer tokens of the step divided by their number, so the effective batch and its gradient stay what they were,
up to the order of sums. Later steps, and the run where it is resumed from a later checkpoint, keep the smaller
microbatches: they are those that a run with as many more `accumulation` would have.

On a CPU the kernel ends a process that takes too much, and says nothing to it. There, memory is looked at before each
microbatch and, some times a second between blocks of the forward pass: what would pass the watermark is halved, too.

In several processes, memory that is left is what all of one machine leave together: whoever sees it pass the watermark
ends the run with an error, since the others wait for its gradients. What others are about to take is not foreseen.

What is drawn at random is drawn anew for each microbatch (dropout masks, the tokens of a sampled vocabulary). So a
step that was cut draws what a run with the smaller microbatches would from there on, not what the whole one did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from climafuse.errors import MemoryExhaustedError
from climafuse.memory import MemoryState, memory_state, out_of_memory, release_memory
from climafuse.training.nonfinite import SAMPLE_KEY, sample_numbers

Batch = Mapping[str, Any]
INTERVAL = 0.05  # seconds between looks at the memory
RESERVE_SHARE, RESERVE = 0.02, 64 << 20  # of the memory, and bytes, that are left to others
_PADDED = ("input_ids", "attention_mask", "labels")  # [N, S]


class WatermarkReached(MemoryError):
    """The next microbatch, or what is left of this one, would take more memory than there is."""


class MemoryGuard:
    """Keeps the microbatches of a run so small that they fit.

    Args:
        windows: Most windows in a microbatch of training.
        evaluation_windows: Most windows in one of an evaluation.
        device: Of the model. On a CPU, the memory of the process is watched.
        read: Tells it; None where nobody can.

    Attributes:
        windows: As given, or halved since.
        evaluation_windows: Likewise.
        splits: What was halved, in JSON types: step, windows before and after, and why.
    """

    def __init__(
        self,
        windows: int,
        evaluation_windows: int,
        *,
        device: torch.device,
        read: Callable[[], MemoryState | None] = memory_state,
    ) -> None:
        self._given = windows, evaluation_windows
        self.device = device
        self.read = read
        self.interval = INTERVAL
        self.load({})

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` told, {} for the beginning."""
        windows, evaluation_windows = self._given
        self.windows: int = min(windows, state.get("windows", windows))
        self.evaluation_windows: int = min(
            evaluation_windows, state.get("evaluation_windows", evaluation_windows)
        )
        self.splits: list[dict[str, Any]] = [dict(split) for split in state.get("splits", [])]
        self._random: list[Tensor] = []
        self._tried: Batch = {}  # what the model was given last
        self._growth: dict[str, float] = {}  # bytes that a pass takes and gives back, by its work
        self._next_look = 0.0
        self._highest: int | None = None  # resident bytes seen within a microbatch; None between them

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in JSON types."""
        return {
            "windows": self.windows,
            "evaluation_windows": self.evaluation_windows,
            "splits": [dict(split) for split in self.splits],
        }

    # ---- Steps

    def accumulate(
        self,
        batches: Sequence[Batch],
        losses: list[Tensor],
        compute: Callable[..., Tensor],
        start_over: Callable[[], None],
        *,
        step: int,
        alone: bool = True,
    ) -> bool:
        """One more microbatch of a step: or all of it so far, in smaller parts, where memory runs out.

        Args:
            batches: The microbatches of the step up to this one.
            losses: Of those that are done; that of this one is appended.
            compute: Forward and backward of a part of a microbatch; `last=` tells whether it is the last one.
            start_over: Drops what the step has left so far: its gradients and counts.
            step: Number of the step.
            alone: Whether this is the only process: others would wait for the gradients of a step that is done again.

        Returns:
            Whether the step was started over: losses before this one are then others.

        Raises:
            MemoryExhaustedError: One window alone does not fit, or other processes take part.
        """
        if not losses:
            self._random = _random_state(self.device)
        again = False
        while True:
            batch: Batch = {}
            try:
                for batch in batches[len(losses) :]:
                    losses.append(self._whole(batch, compute))
                return again
            except (RuntimeError, MemoryError) as error:
                reason = out_of_memory(error)
                if reason is None:
                    raise
            # Out of the handler, so that the graph of what failed is let go of.
            again = True
            losses.clear()
            start_over()
            release_memory()
            windows = min(self.windows, num_windows(batch))
            if windows < 2 or not alone:
                raise self.exhausted(step, self._tried, reason, alone=alone)
            self.windows = self._halved("windows", windows, reason, step)
            _set_random_state(self._random, self.device)

    def evaluate(
        self, batch: Batch, compute: Callable[[Batch], Any], *, step: int, alone: bool = True
    ) -> list[Any]:
        """What is computed without gradients, of a batch or of each of its parts where it does not fit.

        Args:
            batch: The batch.
            compute: What to do with a part.
            step: Number of the step before.
            alone: Whether no other process has to take part in each forward pass, as where weights are spread.

        Raises:
            MemoryExhaustedError: One window alone does not fit, or other processes take part.
        """
        while True:
            try:
                parts = cut(batch, self.evaluation_windows)
                return [self._watched("evaluation", compute, part) for part in parts]
            except (RuntimeError, MemoryError) as error:
                reason = out_of_memory(error)
                if reason is None:
                    raise
            release_memory()
            windows = min(self.evaluation_windows, num_windows(batch))
            if windows < 2 or not alone:
                raise self.exhausted(
                    step, self._tried, reason, alone=alone, smaller="evaluation.windows_per_batch"
                )
            self.evaluation_windows = self._halved("evaluation_windows", windows, reason, step)

    def _whole(self, batch: Batch, compute: Callable[..., Tensor]) -> Tensor:
        parts = cut(batch, self.windows)
        loss: Tensor | None = None
        for number, part in enumerate(parts, start=1):
            one = self._watched("training", partial(compute, last=number == len(parts)), part)
            loss = one if loss is None else loss + one
        assert loss is not None  # of a batch there is one part at least
        return loss

    def _halved(self, what: str, windows: int, reason: str, step: int) -> int:
        fewer = (windows + 1) // 2
        self.splits.append({"step": step, "before": windows, what: fewer, "why": reason})
        return fewer

    def exhausted(
        self,
        step: int,
        batch: Batch,
        reason: str,
        saved: str = "",
        *,
        alone: bool = True,
        smaller: str | None = None,
    ) -> MemoryExhaustedError:
        """The error for what nothing makes small enough.

        Args:
            step: Number of the step.
            batch: What was to be computed; empty if it was something else, such as the update of the weights.
            reason: What the system said.
            saved: What the run can go on from, as a sentence.
            alone: As of `accumulate`.
            smaller: The setting that makes fewer windows a pass; None for a larger accumulation.
        """
        content = "outside of the forward and backward passes"
        if batch:
            content = f"with {num_windows(batch)} windows in a microbatch" if not alone else "with one window"
            texts = batch.get("input_ids")
            if isinstance(texts, Tensor):
                content += f", {len(texts)} texts of up to {texts.shape[-1]} tokens"
        memory = self.read() if self.device.type == "cpu" else None  # the error of a GPU tells it
        held = (
            ""
            if memory is None
            else f"; this process holds {memory.resident / 1e9:.2f} GB, and {memory.room / 1e9:.2f} GB of "
            f"{memory.total / 1e9:.2f} GB are left"
        )
        remedy = (
            "Set training.checkpoint_activations: true (a run may be resumed with it), load the language model with "
            "backbone.quantization: int8, or have fewer or shorter texts a window. "
            if alone
            else f"Set {f'a smaller {smaller}' if smaller else 'a larger training.accumulation'} (a run may be "
            "resumed with it, without --auto-batch): in several processes a step is not done again. "
        )
        return MemoryExhaustedError(
            f"step {step}",
            expected="enough memory for one window and its texts at a time"
            if alone
            else "enough memory for a microbatch in every process",
            received=f"none left {content} ({reason}){held}",
            remedy=remedy + saved,
        )

    # ---- Watermark

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While this lasts, memory is looked at between the blocks of a model, if it is on a CPU."""
        blocks = [
            block for parent in model.modules() if isinstance(parent, nn.ModuleList) for block in parent
        ]
        handles = []
        if self.device.type == "cpu":
            handles = [block.register_forward_pre_hook(lambda *_: self._look()) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watched(self, kind: str, compute: Callable[[Batch], Any], part: Batch) -> Any:
        """Compute a part; before, see whether it will fit, and after, what it took."""
        self._tried = part
        before = self._read()
        if before is None:
            return compute(part)
        growth = self._growth.get(kind, 0.0)
        expected = growth * _work(part)
        if num_windows(part) > 1 and expected > before.room - _reserve(before):
            raise WatermarkReached(
                f"watermark: about {expected / 1e9:.2f} GB to be taken, {before.room / 1e9:.2f} GB left"
            )
        self._highest = before.resident
        try:
            result = compute(part)
            after = self.read()
            if after is not None:
                if after.peak > before.peak:
                    self._highest = max(self._highest, after.peak)
                # What stays, such as weights that were read for the first time, is not taken again.
                taken = self._highest - max(before.resident, after.resident)
                self._growth[kind] = max(growth, taken / _work(part))
        finally:
            self._highest = None
        return result

    def _read(self) -> MemoryState | None:
        """The memory, if it is of use and was not looked at just now."""
        now = time.monotonic()
        if self.device.type != "cpu" or now < self._next_look:
            return None
        self._next_look = now + self.interval
        return self.read()

    def _look(self) -> None:
        """Between two blocks."""
        if self._highest is None:
            return
        memory = self._read()
        if memory is None:
            return
        self._highest = max(self._highest, memory.resident)
        if memory.room < _reserve(memory):
            raise WatermarkReached(
                f"watermark: {memory.resident / 1e9:.2f} GB taken, {memory.room / 1e9:.2f} GB left"
            )


def num_windows(batch: Batch) -> int:
    """Number of windows of a batch; a window may have several rows, without some variables each."""
    return len(_starts(batch))


def cut(batch: Batch, windows: int) -> list[Batch]:
    """A batch in parts, as the collator would make them of fewer windows.

    What is padded of texts is cut off with the longest; windows keep the padding that those of other sizes gave them.

    Args:
        batch: Tensors with a row for each text [N, …] or, if they are named `climate_…` or `sample`, for each climate
            row [B, …]; `climate_index` [N] says which belong together. Anything else goes into all parts.
        windows: Most windows of a part.

    Returns:
        The batch itself where it has no more.
    """
    starts = _starts(batch)
    if len(starts) <= windows:
        return [batch]
    ends = [*starts[::windows], _num_rows(batch)]
    index = _index(batch)
    return [
        _rows(batch, first, last)
        for first, last in pairwise(ends)
        if bool(((index >= first) & (index < last)).any())  # of a window without texts nothing is learned
    ]


def _rows(batch: Batch, first: int, last: int) -> Batch:
    index = _index(batch)
    texts = ((index >= first) & (index < last)).nonzero().squeeze(1)
    mask = batch.get("attention_mask")
    longest = None if mask is None else int(mask[texts].any(dim=0).nonzero().max()) + 1
    part: dict[str, Any] = {}
    for key, value in batch.items():
        if key == "climate_index":
            part[key] = value[texts] - first
        elif not isinstance(value, Tensor) or not value.ndim:
            part[key] = value
        elif key == SAMPLE_KEY or key.startswith("climate_"):
            part[key] = value[first:last]
        else:
            part[key] = value[texts.to(value.device)] if len(value) == len(index) else value
            if key in _PADDED:
                part[key] = part[key][:, :longest]
    return part


def _index(batch: Batch) -> Tensor:
    """The climate row of each text [N]."""
    index: Tensor | None = batch.get("climate_index")
    if index is not None:
        return index
    num_rows, texts = _num_rows(batch), batch.get("input_ids")
    each = 1 if texts is None else len(texts) // num_rows
    return torch.arange(num_rows).repeat_interleave(each)


def _starts(batch: Batch) -> list[int]:
    """The row at which each window begins."""
    numbers = sample_numbers(batch) or list(range(_num_rows(batch)))
    return [row for row, number in enumerate(numbers) if row == 0 or number != numbers[row - 1]]


def _num_rows(batch: Batch) -> int:
    rows = [
        len(value)
        for key, value in batch.items()
        if isinstance(value, Tensor)
        and value.ndim
        and (key == SAMPLE_KEY or (key.startswith("climate_") and key != "climate_index"))
    ]
    return rows[0] if rows else len(next((v for v in batch.values() if isinstance(v, Tensor) and v.ndim), ()))


def _work(batch: Batch) -> int:
    """What the memory of a pass grows with: places of text, else windows."""
    texts = batch.get("input_ids")
    return texts.numel() if isinstance(texts, Tensor) else max(num_windows(batch), 1)


def _reserve(memory: MemoryState) -> int:
    return int(memory.total * RESERVE_SHARE) + RESERVE


def _random_state(device: torch.device) -> list[Tensor]:
    """What a forward pass draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
