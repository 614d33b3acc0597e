"""Label thinning: fewer labels on tokens that the words before them decide alone.

In "Mean temperature -12 °C." only the number depends on the fields; the rest follows from the question. Such tokens
are learned within a few steps, and from then on most labels of a step teach nothing. They are found by counting:
a token is decided by the words if, in the training texts, the same words were followed by nothing else, and more
than once. A share of them is kept in every sample, the same in each epoch, so that they are not unlearned.

This changes how often a label is seen, not what is learned: each label is still the right next token. Evaluation
uses all labels.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from climafuse.model.objective import IGNORED

Tokens = tuple[int, ...]
_PRIME = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd


class LabelThinning:
    """Leaves out most labels that words alone decide.

    Args:
        texts: Tokens of each training text, repeated ones included, and how many of them are the prompt's.
        kept: Share of the labels decided by words that is kept, from 0 to 1.
        seed: Of which are kept.
    """

    def __init__(self, texts: Iterable[tuple[Tokens, int]], *, kept: float, seed: int) -> None:
        self.kept = kept
        self.seed = seed
        counts = Counter(texts)
        # A beginning is known by a hash of 64 bits: kept as tokens, those of long texts would fill the memory.
        before, after, times = array("Q"), array("Q"), array("q")
        for (tokens, start), count in counts.items():
            state = 0
            for place, token in enumerate(tokens):
                following = (state ^ (token + 1)) * _PRIME % 2**64
                following ^= following >> 32
                if place >= start:
                    before.append(state)
                    after.append(following)
                    times.append(count)
                state = following
        beginnings, which = np.unique(np.array(before, dtype=np.uint64), return_inverse=True)
        first = np.unique(np.array(after, dtype=np.uint64), return_index=True)[1]
        kinds = np.bincount(which[first], minlength=len(beginnings))  # how many tokens follow a beginning
        total = np.bincount(which, weights=times, minlength=len(beginnings))  # how often it is followed
        open_ = ((kinds > 1) | (total == 1))[which]
        self._open: dict[Tokens, tuple[int, np.ndarray]] = {}
        end = 0
        for tokens, start in counts:
            begin, end = end, end + max(len(tokens) - start, 0)
            places = start + np.flatnonzero(open_[begin:end])
            self._open[tokens] = zlib.crc32(repr(tokens).encode()), places.astype(np.int32)

    def apply(self, labels: Tensor, input_ids: Tensor, samples: Sequence[int]) -> None:
        """Set labels that are left out to `IGNORED`, in place.

        Args:
            labels: [N, S], padded on the right.
            input_ids: [N, S].
            samples: N numbers of windows.
        """
        ids, values = input_ids.tolist(), labels.numpy()
        for row, sample in enumerate(samples):
            labeled = np.flatnonzero(values[row] != IGNORED)
            found = self._open.get(tuple(ids[row][: labeled[-1] + 1]))
            if found is None:
                continue  # a text that was not counted keeps all its labels
            # By window and text, not by row: a sample keeps the same labels in whatever batch it comes.
            code, places = found
            keep = np.random.default_rng((self.seed, sample, code)).random(len(labeled)) < self.kept
            keep[np.searchsorted(labeled, places)] = True
            keep[0] |= not keep.any()  # a batch without any label has no loss
            values[row, labeled[~keep]] = IGNORED
