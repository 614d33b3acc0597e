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
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from climafuse.model.objective import IGNORED

Tokens = tuple[int, ...]


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
        followers: dict[Tokens, Counter[int]] = {}
        counts = Counter(texts)
        for (tokens, start), count in counts.items():
            for place in range(start, len(tokens)):
                followers.setdefault(tokens[:place], Counter())[tokens[place]] += count
        self._open: dict[Tokens, tuple[int, ...]] = {
            tokens: tuple(
                place
                for place in range(start, len(tokens))
                if len(followers[tokens[:place]]) > 1 or followers[tokens[:place]].total() == 1
            )
            for tokens, start in counts
        }

    def apply(self, labels: Tensor, input_ids: Tensor, samples: Sequence[int]) -> None:
        """Set labels that are left out to `IGNORED`, in place.

        Args:
            labels: [N, S], padded on the right.
            input_ids: [N, S].
            samples: N numbers of windows.
        """
        ids, marks = input_ids.tolist(), (labels != IGNORED).numpy()
        for row, sample in enumerate(samples):
            labeled = np.flatnonzero(marks[row])
            tokens = tuple(ids[row][: labeled[-1] + 1])
            if tokens not in self._open:
                continue  # a text that was not counted keeps all its labels
            # By window and text, not by row: a sample keeps the same labels in whatever batch it comes.
            key = (self.seed, sample, zlib.crc32(repr(tokens).encode()))
            keep = np.random.default_rng(key).random(len(labeled)) < self.kept
            keep |= np.isin(labeled, self._open[tokens])
            keep[0] |= not keep.any()  # a batch without any label has no loss
            labels[row, labeled[~keep]] = IGNORED
