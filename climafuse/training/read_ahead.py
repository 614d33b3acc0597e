"""The next batch's windows come from the disk while the present step computes, without a loader process.

Where the fields are larger than memory, most of a loader's time is waiting for the disk. A thread that only asks the
system to read needs no processor to speak of; cutting and normalizing stay where they were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import cast

from torch.utils.data import Sampler

AHEAD = 4  # batches: a disk that stops for a moment is not noticed


class ReadAheadSampler(Sampler[int]):
    """Passes on what another sampler gives, unchanged, and has the batches after the present one read meanwhile.

    Args:
        sampler: Gives the positions.
        will_need: Has the samples at some positions read from the disk. It runs in a thread, and may be left out
            for batches that are passed over quickly. What it raises is dropped: reading the sample itself meets
            the same trouble, and says so.
        batch_size: Samples in a batch.
    """

    def __init__(
        self, sampler: Sampler[int], will_need: Callable[[Sequence[int]], None], batch_size: int
    ) -> None:
        self._sampler, self._will_need, self._batch_size = sampler, will_need, batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, where the other sampler has any."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        positions = iter(self._sampler)
        batches = iter(lambda: list(islice(positions, self._batch_size)), [])
        asked: deque[tuple[list[int], Future[None]]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
            try:
                while True:
                    for batch in islice(batches, 1 + AHEAD - len(asked)):
                        asked.append((batch, reader.submit(self._will_need, batch)))
                    if not asked:
                        return
                    batch, reading = asked.popleft()
                    reading.cancel()  # if not begun: a resumed run passes over some batches quickly
                    yield from batch
            finally:
                reader.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(cast("Sized", self._sampler))
