"""Label thinning: fewer labels on tokens that the words before them decide alone.

In "Mean temperature -12 °C." only the number depends on the fields; the rest follows from the question. Such tokens
are learned within a few steps, and from then on most labels of a step teach nothing. They are found by counting:
a token is decided by the words if, in the training texts, the same words were followed by nothing else, and more
than once. A share of them is kept in every sample, the same in each epoch, so that they are not unlearned.

Answers that are given rarely keep all: "What is the mean ozone?" comes once in thousands of texts, and the words of
its answer are not learned within a few steps. How often an answer is given is counted where it first parts from the
other answers to its question ("No" from "Mean"), or by its question where there is no other.

This changes how often a label is seen, not what is learned: each label is still the right next token. Evaluation
uses all labels.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from climafuse.model.objective import IGNORED

RARE = 1 / 6  # how often an answer is given at most, as a share of the median of all texts
Tokens = tuple[int, ...]
_PRIME = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd


@dataclass(frozen=True, slots=True)
class _Text:
    """A training text.

    Args:
        code: A hash of its tokens.
        open: Places of the tokens that words do not decide.
        share: Of the other labels, how many are kept.
    """

    code: int
    open: np.ndarray
    share: float


_UNKNOWN = _Text(0, np.zeros(0, np.int32), 1.0)  # a text that was not counted keeps all its labels


class LabelThinning:
    """Leaves out most labels that words alone decide.

    Args:
        texts: Tokens of each training text, repeated ones included, and how many of them are the prompt's.
        kept: Share of the labels decided by words that is kept, from 0 to 1; all of answers given rarely.
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
        begins = np.cumsum([0, *(max(len(tokens) - start, 0) for tokens, start in counts)])
        # Of each text, the beginning up to the first token that parts it from others, or to its first token.
        parted = np.array(
            [
                after[begin + int(open_[begin:end].argmax())] if begin < end else 0
                for begin, end in pairwise(begins)
            ],
            dtype=np.uint64,
        )
        alike = np.unique(parted, return_inverse=True)[1]
        num_alike = np.bincount(alike, weights=list(counts.values()))[alike]
        usual = np.median(np.repeat(num_alike, list(counts.values()))) if counts else 0.0
        shares = np.where(num_alike <= RARE * usual, 1.0, kept)
        self._texts = {
            tokens: _Text(
                zlib.crc32(repr(tokens).encode()),
                start + np.flatnonzero(open_[begin:end]).astype(np.int32),
                float(share),
            )
            for (tokens, start), (begin, end), share in zip(counts, pairwise(begins), shares, strict=True)
        }

    def apply(self, labels: Tensor, input_ids: Tensor, samples: Sequence[int]) -> None:
        """Set labels that are left out to `IGNORED`, in place.

        Args:
            labels: [N, S], padded on the right.
            input_ids: [N, S].
            samples: N numbers of windows.
        """
        ids, values = input_ids.tolist(), labels.numpy()
        labeled = values != IGNORED  # [N, S]
        lengths = values.shape[1] - np.argmax(labeled[:, ::-1], axis=1)
        found = [
            self._texts.get(tuple(row[:length]), _UNKNOWN) for row, length in zip(ids, lengths, strict=True)
        ]
        # By window and text, not by row: a sample keeps the same labels in whatever batch it comes.
        codes = np.array([text.code for text in found])
        shares = np.array([text.share for text in found])
        keep = _uniform((self.seed, np.array(samples), codes), values.shape[1]) < shares[:, None]
        for row, text in enumerate(found):
            keep[row, text.open] = True
        keep &= labeled
        # A batch without any label has no loss: a text left with none keeps its first.
        keep[np.arange(len(keep)), np.argmax(labeled, axis=1)] |= ~keep.any(axis=1)
        values[labeled & ~keep] = IGNORED


def _uniform(keys: Sequence[int | np.ndarray], length: int) -> np.ndarray:
    """Numbers in [0, 1) that are a pure function of keys and place: [N, length].

    Reference: Steele et al. 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in (*(np.asarray(key).astype(np.uint64)[..., None] for key in keys), np.arange(length)):
        state = (state ^ key.astype(np.uint64)) + np.uint64(_PRIME)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)) * 2.0**-53
