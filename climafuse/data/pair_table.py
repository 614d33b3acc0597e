"""Many pairs in little memory: columns of numbers, and each text once.

A `Pair` with its box and its facts takes one to two kilobytes; a row here takes 76 bytes beside its texts, and of
short questions and answers most come again and again. A hundred thousand pairs travel to a loader worker in
moments.
"""

from __future__ import annotations

import functools
import json
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from climafuse.data.pairs import Pair
from climafuse.data.times import OtherDate, label_number, label_of
from climafuse.data.window import Box
from climafuse.errors import PairsError


class PairTable(Sequence[Pair]):
    """Pairs by position; each is made when it is asked for.

    Args:
        pairs: The pairs; read only once, so that a generator may give them.

    Raises:
        PairsError: A pair holds facts that are not JSON.
    """

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        numbers: dict[str, int] = {}  # of the texts, in the order they come
        times, places, words, samples = array("q"), array("d"), array("q"), array("q")
        for number, pair in enumerate(pairs, start=1):
            box = pair.place
            times.extend(label_number(time) for time in pair.times)
            places.extend(
                (np.nan,) * 4 if box is None else (box.latitude, box.longitude, box.height, box.width)
            )
            for text in (pair.prompt, pair.text, _facts_of(pair, number), ",".join(pair.withheld)):
                words.append(numbers.setdefault(text, len(numbers)))
            samples.append(pair.sample)
        self._times = np.array(times, dtype=np.int64).reshape(-1, 2)  # numbers of labels
        self._places = np.array(places).reshape(-1, 4)  # NaN for everywhere
        self._words = np.array(words, dtype=np.int32).reshape(-1, 4)  # prompt, text, facts, withheld
        self.samples = np.array(samples, dtype=np.int64)
        self._texts = list(numbers)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        """The pair at a position, or those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        first, last = self._times[index].tolist()
        prompt, text, facts, withheld = (self._texts[word] for word in self._words[index].tolist())
        pair = object.__new__(Pair)  # what came in was checked; a loader makes a hundred of these for a batch
        pair.__dict__.update(
            times=(label_of(first), label_of(last)),
            place=self.place(index),
            prompt=prompt,
            text=text,
            facts=tuple(json.loads(facts)) if facts != "[]" else (),
            sample=int(self.samples[index]),
            withheld=_names(withheld),
            where="",
        )
        return pair

    def __eq__(self, other: object) -> bool:
        """Equal to the same pairs in the same order, in a table or not."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def place(self, index: int) -> Box | None:
        """Where the pair at a position is about; None for everywhere."""
        place = self._places[index].tolist()
        return None if place[0] != place[0] else _box(*place)

    def windows(self) -> tuple[list[tuple[np.datetime64 | OtherDate, np.datetime64 | OtherDate]], np.ndarray]:
        """Which pairs are about one time, or one range of times.

        Returns:
            U first and last times, each once; [N] the position there of each pair.
        """
        times, rows = np.unique(self._times, axis=0, return_inverse=True)
        return [(label_of(first), label_of(last)) for first, last in times.tolist()], rows.reshape(-1)

    def texts(self, positions: np.ndarray) -> list[tuple[str, str]]:
        """(prompt, answer) of the pairs at some positions."""
        words = self._words[positions, :2].tolist()
        return [(self._texts[prompt], self._texts[answer]) for prompt, answer in words]

    def withheld(self, positions: np.ndarray) -> list[tuple[str, ...]]:
        """Variables that the pairs at some positions withhold."""
        return [_names(self._texts[word]) for word in self._words[positions, 3].tolist()]


# The texts of a window come one after the other, and a box checks itself when it is made.
_box = functools.lru_cache(maxsize=64)(Box)


def _names(withheld: str) -> tuple[str, ...]:
    return tuple(withheld.split(",")) if withheld else ()


def _facts_of(pair: Pair, number: int) -> str:
    try:
        return json.dumps(pair.facts, ensure_ascii=False, allow_nan=False) if pair.facts else "[]"
    except (TypeError, ValueError) as error:
        raise PairsError(
            f"pair {number}",
            expected="facts of finite numbers, text, lists and objects",
            received=error,
            remedy="Convert the values before.",
        ) from error
