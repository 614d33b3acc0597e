"""What a training sample is: one climate window with all its texts, so that the window is encoded once for them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from climafuse.data.batch import sample_boxes
from climafuse.data.pairs import Pair, read_pairs
from climafuse.data.samples import SAMPLES, SampleName, sample_path
from climafuse.data.sources import open_climate
from climafuse.data.splits import SPLIT_NAMES, SplitName, split_by_time
from climafuse.data.store import MANIFEST, TrainingStore
from climafuse.data.window import Grid, Window
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


class ExampleDataset(Dataset[Example]):
    """Examples in memory, by position.

    Args:
        examples: The examples.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


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

    A training store brings its own splits; the fractions and the gap of the configuration are for the others.
    Pairs of the configuration go before those of a store.

    Args:
        config: The run.

    Returns:
        A training store; one in memory where the source is none.

    Raises:
        DataError: The source cannot be opened or lacks a variable.
        PairsError: A pair is malformed or is about what the fields do not hold.
        ConfigurationError: A training store holds other variables than the configuration names.
    """
    data = config.data
    source: str | Path = data.source
    if data.source in SAMPLES:
        source = sample_path(cast("SampleName", data.source))
    if (Path(source) / MANIFEST).is_file():
        return _open_prepared(Path(source), config)
    dataset = open_climate(source, variables=data.variables)
    gap = datetime.timedelta(hours=data.gap_hours)
    splits = split_by_time(dataset["time"].values, fractions=data.fractions, gap=gap)
    pairs = [] if data.pairs is None else read_pairs(data.pairs, size=(data.box_degrees, data.box_degrees))
    return TrainingStore.from_dataset(dataset, splits=splits, pairs=pairs)


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
    if data.pairs is not None:
        pairs = read_pairs(data.pairs, size=(data.box_degrees, data.box_degrees))
        store = replace(store, all_pairs=tuple(pairs))
        store.check_pairs()
    return store


def make_examples(store: TrainingStore, split: SplitName, config: RunConfig) -> list[Example]:
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
        size=(data.box_degrees, data.box_degrees),
        seed=seed,
        within=Grid(store.latitude, store.longitude).centers(data.box_degrees, data.box_degrees),
    )
    windows = {number: store.window(step, box, data.history) for number, (step, box) in enumerate(chosen)}
    pairs: dict[int, list[Pair]] = {}
    for pair in describe(
        windows.items(),
        seed=seed,
        kinds=facts.kinds,
        questions_per_window=facts.questions_per_window,
        bulletins=facts.bulletin_fraction,
        abstentions=facts.abstention_fraction,
    ):
        pairs.setdefault(pair.sample, []).append(pair)
    if not pairs:
        raise PairsError(
            "facts.kinds",
            expected=f"kinds of fact that fields of {', '.join(store.variables)} tell",
            received=f"{', '.join(facts.kinds or ['all kinds'])}: nothing to say of any {split} window",
            remedy="Choose other kinds, variables or larger boxes.",
        )
    return [Example(split, number, windows[number], tuple(texts)) for number, texts in pairs.items()]


def _from_pairs(store: TrainingStore, split: SplitName, history: int) -> list[Example]:
    groups: dict[int, list[Pair]] = {}
    for pair in store.pairs(split, history):
        groups.setdefault(pair.sample, []).append(pair)
    if not groups:
        first, last = store.time[store.splits.indices(split)[[0, -1]]]
        raise PairsError(
            "pairs",
            expected=f"at least one about the {split} times, {first} to {last}, with {history} steps of history",
            received="none",
            remedy="Add pairs about these times, or change data.fractions.",
        )
    return [
        Example(split, number, store.pair_window(texts[0], history), tuple(texts))
        for number, texts in groups.items()
    ]


def texts_of(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """Return (prompt, answer) of all texts, repeated ones included."""
    return [(pair.prompt, pair.text) for example in examples for pair in example.pairs]


def window_statistics(examples: Sequence[Example]) -> dict[str, int]:
    """Count windows and texts, for logs."""
    return {
        "windows": len(examples),
        "texts": len(texts_of(examples)),
        "distinct": len(set(texts_of(examples))),
    }
