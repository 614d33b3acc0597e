"""Coming batches are read while the present step computes, without a loader process.

Where the fields are larger than memory, most of a loader's time is waiting for the disk; the rest is cutting windows. A
thread does both while the step is busy with tensors. What a batch holds is a function of its positions alone, so it is
the same batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, cast, runtime_checkable

from torch.utils.data import Sampler

AHEAD = 4  # batches: a disk that stops for a moment is not noticed


@runtime_checkable
class ReadsAhead(Protocol):
    """A dataset whose batches can be made before they are asked for."""

    def read(self, positions: list[int]) -> list[Any]:
        """Make the samples of a batch, in any thread."""

    def expect(self, positions: list[int], samples: Future[list[Any]]) -> None:
        """Take note of the batch that will be asked for next, and of what makes it."""


class ReadAheadSampler(Sampler[int]):
    """Passes on what another sampler gives, unchanged, and has the batches after the present one made meanwhile.

    Args:
        sampler: Gives the positions.
        dataset: Makes the samples, and hands them to the loader.
        batch_size: Samples in a batch.
    """

    def __init__(self, sampler: Sampler[int], dataset: ReadsAhead, batch_size: int) -> None:
        self._sampler, self._dataset, self._batch_size = sampler, dataset, batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, where the other sampler has any."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        positions = iter(self._sampler)
        batches = iter(lambda: list(islice(positions, self._batch_size)), [])
        begun: deque[tuple[list[int], Future[list[Any]]]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
            try:
                while True:
                    for batch in islice(batches, 1 + AHEAD - len(begun)):
                        begun.append((batch, reader.submit(self._dataset.read, batch)))
                    if not begun:
                        return
                    batch, samples = begun.popleft()
                    self._dataset.expect(batch, samples)
                    yield from batch
                    samples.cancel()  # a resumed run passes over some batches quickly
            finally:
                reader.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(cast("Sized", self._sampler))
