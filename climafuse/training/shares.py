"""Which samples a process reads where several train one model: its share of every microbatch, and no other.

One process with the same settings takes microbatches of `windows_per_step / accumulation` samples. Several take the
same microbatches in the same order and cut each into contiguous parts, one a process: every sample is read by one
process, and all of a step by all processes together. So the number of processes changes neither the effective
batches nor where a run is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import islice
from typing import cast

from torch.utils.data import Sampler


class Share(Sampler[int]):
    """The samples of one process, in order: its part of one microbatch after the other.

    Parts of a microbatch differ by one sample at most, which happens at the end of an epoch only. Where it has fewer
    samples than there are processes, some would have none, and would be missing where all processes must meet; such a
    process is given the last sample of the microbatch, and must give it no weight (`borrows`).

    Args:
        sampler: The order of all samples, the same in every process.
        batch: Samples in a microbatch of all processes; a multiple of `size`.
        rank: Number of this process.
        size: How many there are.
    """

    def __init__(self, sampler: Sampler[int], batch: int, *, rank: int, size: int) -> None:
        assert batch % size == 0
        self._sampler, self._batch, self._rank, self._size = sampler, batch, rank, size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, where the order depends on it."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    @property
    def borrows(self) -> bool:
        """Whether the last microbatch holds nothing of this process but a sample that another one counts."""
        rest = len(cast("Sized", self._sampler)) % self._batch
        return rest > 0 and len(self._part(range(rest))) == 0

    def _part(self, samples: range) -> range:
        begin, end = (rank * len(samples) // self._size for rank in (self._rank, self._rank + 1))
        return samples[begin:end]

    def __iter__(self) -> Iterator[int]:
        positions = iter(self._sampler)
        while microbatch := list(islice(positions, self._batch)):
            part = self._part(range(len(microbatch)))
            yield from (microbatch[number] for number in part or (-1,))

    def __len__(self) -> int:
        whole, rest = divmod(len(cast("Sized", self._sampler)), self._batch)
        own = whole * (self._batch // self._size)
        return own + (max(len(self._part(range(rest))), 1) if rest else 0)
