"""What a training sample is: one climate window with all its texts, so that the window is encoded once for them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from torch.utils.data import Dataset

from climafuse.data.anomalies import rebase
from climafuse.data.batch import sample_boxes
from climafuse.data.pair_table import PairTable
from climafuse.data.pairs import Pair
from climafuse.data.places import find_place
from climafuse.data.provenance import plain
from climafuse.data.samples import SAMPLES, SampleName, sample_path
from climafuse.data.splits import SPLIT_NAMES, SplitName, split_by_periods, split_by_time
from climafuse.data.store import MANIFEST, TrainingStore
from climafuse.data.window import Box, Grid, Window
from climafuse.errors import ConfigurationError, PairsError
from climafuse.facts import describe, withhold
from climafuse.model import ClimateTextProcessor
from climafuse.training.config import RunConfig
from climafuse.training.thinning import LabelThinning


@dataclass(frozen=True)
class Example:
    """One window and what is said about it.

    Args:
        split: Of which split it is.
        sample: Number of the window in it; errors name it.
        window: The fields.
        pairs: Texts about it, at least one.
    """

    split: SplitName
    sample: int
    window: Window
    pairs: tuple[Pair, ...]


class Examples(Sequence[Example]):
    """Examples of a split by position. A window is cut from the store when its example is asked for.

    That is a pure function of the position, and takes microseconds: nothing is gained by keeping windows. A loader
    worker is sent the descriptions, not the fields.

    Args:
        store: The fields.
        split: The split.
        pairs: All texts, and possibly more.
        positions: [N] of the texts of this split among them.
        steps: [N, 2] first step of the window of each of these texts, and one past the last.
        boxes: Box of a window by its sample number; None where pairs tell their place.
    """

    def __init__(
        self,
        store: TrainingStore,
        split: SplitName,
        pairs: PairTable,
        positions: np.ndarray,
        steps: np.ndarray,
        boxes: Sequence[Box] | None = None,
    ) -> None:
        self.store, self.split, self.pairs, self._boxes = store, split, pairs, boxes
        # Windows in the order of their first texts; the texts of a window in their order.
        samples = pairs.samples[positions]
        _, first, group = np.unique(samples, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))
        order = np.argsort(rank[group], kind="stable")
        self._positions = positions[order]
        self._begins = np.append(0, np.cumsum(np.bincount(rank[group]))) if len(first) else np.zeros(1, int)
        self._steps = steps[order][self._begins[:-1]]

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """The example at a position, or those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        begin, end = self._begins[index : index + 2]
        pairs = tuple(self.pairs[position] for position in self._positions[begin:end])
        return Example(self.split, pairs[0].sample, self.store.cut(*self._window(index)), pairs)

    def will_need(self, indices: Iterable[int]) -> None:
        """Have the windows of a batch read from the disk all at once."""
        self.store.will_need(map(self._window, indices))

    def _window(self, index: int) -> tuple[slice, Box | None]:
        first = self._positions[self._begins[index]]
        box = self.pairs.place(first) if self._boxes is None else self._boxes[self.pairs.samples[first]]
        return slice(*self._steps[index].tolist()), box

    def texts(self) -> list[tuple[str, str]]:
        """(prompt, answer) of all texts, repeated ones included; no window is cut."""
        return self.pairs.texts(self._positions)

    def withheld(self) -> list[tuple[str, ...]]:
        """Variables that each text withholds; no window is cut."""
        return self.pairs.withheld(self._positions)

    def windows(self) -> Iterator[tuple[slice, Box | None, int]]:
        """Steps and box of each window, and how many texts are about it; no window is cut."""
        for index, num_texts in enumerate(np.diff(self._begins).tolist()):
            yield *self._window(index), num_texts


class ExampleDataset(Dataset[Example]):
    """Examples by position, for a loader.

    Args:
        examples: The examples.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self._expected: tuple[list[int], Future[list[Example]]] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """The examples of a batch: what a loader of PyTorch asks for where it can."""
        expected, self._expected = self._expected, None
        if expected is not None and expected[0] == indices and not expected[1].cancel():
            return expected[1].result()
        return self.read(indices)

    def read(self, positions: list[int]) -> list[Example]:
        """Make the examples of a batch, in any thread. From a disk they come all at once."""
        if isinstance(self.examples, Examples):
            self.examples.will_need(positions)
        return [self.examples[position] for position in positions]

    def expect(self, positions: list[int], samples: Future[list[Example]]) -> None:
        """Take note of the batch that will be asked for next (`ReadAheadSampler`)."""
        self._expected = positions, samples

    def __getstate__(self) -> dict[str, Any]:
        """For a loader worker, which makes its batches itself."""
        return {**vars(self), "_expected": None}


class ExampleCollator:
    """Examples to a batch for the model. A pure function of the examples.

    Args:
        processor: Of the model.
        thinning: Which labels of training examples are left out; None for none.
    """

    def __init__(self, processor: ClimateTextProcessor, thinning: LabelThinning | None = None) -> None:
        self.processor = processor
        self.thinning = thinning

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make a batch: B climate rows (a window, or a window without some variables), N texts."""
        windows: list[Window] = []
        samples: list[int] = []
        prompts, answers, index = [], [], []
        for example in examples:
            rows: dict[tuple[str, ...], int] = {}
            for pair in example.pairs:
                if pair.withheld not in rows:
                    rows[pair.withheld] = len(windows)
                    windows.append(withhold(example.window, pair.withheld))
                    samples.append(example.sample)
                prompts.append(pair.prompt)
                answers.append(pair.text)
                index.append(rows[pair.withheld])
        batch = dict(self.processor(windows, prompts, answers, climate_index=index))
        if self.thinning is not None and all(example.split == "train" for example in examples):
            self.thinning.apply(batch["labels"], batch["input_ids"], [samples[row] for row in index])
        batch["sample"] = torch.tensor(samples)
        return batch


def open_store(config: RunConfig) -> TrainingStore:
    """Open the fields of a run: a bundled sample, a training store, or climate files.

    A training store brings its own splits; fractions, periods and gap of the configuration are for the others.
    Pairs of the configuration go before those of a store.

    Args:
        config: The run.

    Returns:
        A training store; one in memory where the source is none.

    Raises:
        DataError: The source cannot be opened or lacks a variable.
        PairsError: A pair is malformed or is about what the fields do not hold.
        ConfigurationError: A training store holds other variables than the configuration names, or the
            configuration asks for other splits or anomalies than a store has.
    """
    # Only here: a loader worker imports this module, and has no use for the libraries of climate files.
    from climafuse.data.sources import open_climate

    data = config.data
    source: str | Path = data.source
    if data.source in SAMPLES:
        source = sample_path(cast("SampleName", data.source))
    if os.path.isfile(Path(source) / MANIFEST):  # False, too, for what cannot be a name
        return _open_prepared(Path(source), config)
    dataset = open_climate(source, variables=data.variables)
    gap = datetime.timedelta(hours=data.gap_hours)
    times = dataset["time"].values
    if data.periods is None:
        splits = split_by_time(times, fractions=data.fractions, gap=gap)
    else:
        splits = split_by_periods(times, data.periods, gap=gap)
    if data.anomalies is not None:
        dataset = rebase(dataset, splits.train, data.anomalies)
    store = TrainingStore.from_dataset(dataset, splits=splits)
    return _with_pairs(replace(store, provenance={"attributes": plain(dataset.attrs)}), config)


def _open_prepared(path: Path, config: RunConfig) -> TrainingStore:
    data = config.data
    store = TrainingStore.open(path)
    if store.variables != data.variables:
        raise ConfigurationError(
            "data.variables",
            expected=f"those of the training store {path}, [{', '.join(store.variables)}]",
            received=f"[{', '.join(data.variables)}]",
            remedy="Name these, or prepare a store of the others.",
        )
    if data.periods is not None:
        wanted = split_by_periods(store.time, data.periods)
        if any(not np.array_equal(wanted.indices(name), store.splits.indices(name)) for name in SPLIT_NAMES):
            raise ConfigurationError(
                "data.periods",
                expected=f"the splits of the training store {path}, or null",
                received=data.periods,
                remedy="Leave it out, or prepare a store with these periods.",
            )
    made = store.statistics.attrs.get("anomalies")
    if data.anomalies not in (None, made):
        raise ConfigurationError(
            "data.anomalies",
            expected=f"what the training store {path} was prepared with: {made}",
            received=data.anomalies,
            remedy="Leave it out, or prepare a store with it.",
        )
    return _with_pairs(store, config)


def _with_pairs(store: TrainingStore, config: RunConfig) -> TrainingStore:
    data = config.data
    return store if data.pairs is None else store.with_pairs(data.pairs, size=data.box_size)


def make_examples(store: TrainingStore, split: SplitName, config: RunConfig) -> Examples:
    """Make the examples of a split: from the pairs of the store if it has any, else from facts.

    Windows lie wholly inside the split. Texts made from facts are a pure function of the configuration.

    Args:
        store: The fields.
        split: "train", "validation" or "test".
        config: The run.

    Raises:
        PairsError: The store has pairs, but none in this split; or there is nothing to say of any window.
    """
    data, facts = config.data, config.facts
    if store.all_pairs:
        return _from_pairs(store, split, data.history)
    num = {"train": data.train_windows, "validation": data.validation_windows, "test": data.test_windows}[
        split
    ]
    # Different seeds, so that no split's places are those of another.
    seed = len(SPLIT_NAMES) * data.seed + SPLIT_NAMES.index(split)
    chosen = sample_boxes(
        store.splits.valid_times(split, history=data.history),
        num,
        size=data.box_size,
        seed=seed,
        within=Grid(store.latitude, store.longitude).centers(*data.box_size),
        places=_places(data.places),
    )
    pairs = PairTable(
        describe(
            ((number, store.window(step, box, data.history)) for number, (step, box) in enumerate(chosen)),
            seed=seed,
            kinds=facts.kinds,
            questions_per_window=facts.questions_per_window,
            bulletins=facts.bulletin_fraction,
            abstentions=facts.abstention_fraction,
        )
    )
    if not pairs:
        raise PairsError(
            "facts.kinds",
            expected=f"kinds of fact that fields of {', '.join(store.variables)} tell",
            received=f"{', '.join(facts.kinds or ['all kinds'])}: nothing to say of any {split} window",
            remedy="Choose other kinds, variables or larger boxes.",
        )
    last = np.array([step for step, _ in chosen])[pairs.samples] + 1
    steps = np.stack([last - data.history, last], axis=1)
    return Examples(store, split, pairs, np.arange(len(pairs)), steps, [box for _, box in chosen])


def _places(shares: dict[str, float]) -> list[tuple[float, float, float]]:
    """Latitude, longitude and share of each."""
    found = [(find_place(name), share) for name, share in shares.items()]
    return [(place.latitude, place.longitude, share) for place, share in found]


def _from_pairs(store: TrainingStore, split: SplitName, history: int) -> Examples:
    positions, steps = store.pair_steps(split, history)
    if not len(positions):
        first, last = store.time[store.splits.indices(split)[[0, -1]]]
        raise PairsError(
            "pairs",
            expected=f"at least one about the {split} times, {first} to {last}, with {history} steps of history",
            received="none",
            remedy="Add pairs about these times, or change data.fractions.",
        )
    return Examples(store, split, store.all_pairs, positions, steps)


def window_statistics(examples: Examples) -> dict[str, int]:
    """Count windows and texts, for logs."""
    texts = examples.texts()
    return {"windows": len(examples), "texts": len(texts), "distinct": len(set(texts))}
