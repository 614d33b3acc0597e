"""Ask a model about a chosen time and place: state in, answer, checked facts and pictures out.

What a page does, without the page: everything comes in as text, a truth value or a position on the map, and nothing of
it is ever taken for a path.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from climafuse.data.anomalies import rebase_as
from climafuse.data.places import find_place
from climafuse.data.samples import SAMPLES, SampleName, sample_path
from climafuse.data.sources import open_climate
from climafuse.data.store import MANIFEST, TrainingStore
from climafuse.data.times import as_time_axis, find_time, format_time
from climafuse.data.variables import VARIABLES
from climafuse.data.window import Box, Grid, Window, locate_history, select_window
from climafuse.errors import (
    CheckpointError,
    ConfigurationError,
    MissingValuesError,
    OutOfRangeError,
    UsageError,
)
from climafuse.evaluation.attribution import Attention, attention, occlusion
from climafuse.facts import (
    FACT_KINDS,
    Fact,
    abstention,
    check_facts,
    extract,
    parse,
    question_answer,
    sources,
    window_box,
)
from climafuse.facts.phrasing import askable
from climafuse.model.configuration import ClimateTextConfig
from climafuse.model.folder import model_folder
from climafuse.model.inference import Reader, load_model
from climafuse.report.attribution import attribution_layers, marks_of
from climafuse.report.locator import draw_locator, point_at
from climafuse.report.maps import Layer, drawn_variables, spoken_field, time_label
from climafuse.report.samples import Picture, exact_value, field_picture, layer_picture
from climafuse.training.config import CONFIG_FILE, RunConfig, load_config
from climafuse.training.dataset import open_store

LONGEST_PROMPT = 500  # characters
NUM_EXAMPLES = 6
MOST_FACTS = 3  # of an answer, whose maps are drawn
BEGINNINGS = ("48.9,2.3", "0.0,-140.0", "-30.0,0.0")  # where a page about the globe begins: land, or ocean


@dataclass(frozen=True, eq=False)
class Fields:
    """Fields to ask about, wherever they are kept.

    Args:
        source: Where they are from, for people.
        license: As their source states it.
        time: [T] their times.
        steps: [N] int64, those of the times that can be asked about.
        latitude: [H] degrees north, ascending.
        longitude: [W] degrees east, ascending in [0, 360).
        cut: Cuts the window of a step out; of all the grid where there is no box.
    """

    source: str
    license: str | None
    time: np.ndarray
    steps: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    cut: Callable[[int, Box | None], Window]

    @classmethod
    def of_run(cls, config: RunConfig) -> Fields:
        """The fields of a run at its test times: the model has seen nothing of them."""
        store, history = open_store(config), config.data.history
        return cls._of_store(
            store, config.data.source, store.splits.valid_times("test", history=history), history
        )

    @classmethod
    def of_source(cls, source: str, config: ClimateTextConfig) -> Fields:
        """Other fields, at all of their times that have enough history.

        Args:
            source: A bundled sample, a training store, or what `open_climate` takes.
            config: Of the model that will read them.

        Raises:
            ClimafuseError: They cannot be opened, or do not hold the variables of the model.
        """
        if os.path.isfile(Path(source) / MANIFEST):  # False, too, for what cannot be a name
            store = TrainingStore.open(source)
            if list(store.variables) != list(config.variables):
                raise ConfigurationError(
                    "climate",
                    expected=f"fields of the variables that the model reads, {', '.join(config.variables)}",
                    received=", ".join(store.variables),
                    remedy="Give fields that hold them.",
                )
            return cls._of_store(store, source, _with_history(store.time, config.history), config.history)
        is_sample = source in SAMPLES and not Path(source).exists()
        path = sample_path(cast("SampleName", source)) if is_sample else source
        dataset = rebase_as(open_climate(path, variables=config.variables), config.statistics or {})
        time = as_time_axis(dataset["time"].values)
        return cls(
            source,
            None if "license" not in dataset.attrs else str(dataset.attrs["license"]),
            time,
            _with_history(time, config.history),
            dataset["latitude"].values,
            dataset["longitude"].values,
            lambda step, box: select_window(dataset, time=time[step], box=box, history=config.history),
        )

    @classmethod
    def _of_store(cls, store: TrainingStore, source: str, steps: np.ndarray, history: int) -> Fields:
        return cls(
            source,
            store.license,
            store.time,
            steps,
            store.latitude,
            store.longitude,
            lambda step, box: store.cut(locate_history(store.time, step, history), box),
        )

    def times(self) -> list[str]:
        """The times that can be asked about, as text."""
        return [format_time(self.time[step]) for step in self.steps]

    def step_of(self, time: str) -> int:
        """The step of a time.

        Raises:
            ClimafuseError: It is no time, or none that can be asked about.
        """
        return int(self.steps[find_time(self.time[self.steps], time)])


def _with_history(time: np.ndarray, history: int) -> np.ndarray:
    steps = np.arange(history - 1, len(time))
    if not len(steps):
        raise OutOfRangeError(
            "climate",
            expected=f"at least the {history} times that the model reads together",
            received=len(time),
            remedy="Give fields with more times.",
        )
    return steps


@dataclass(frozen=True)
class Told:
    """An answer with all that tells whether to believe it.

    Args:
        prompt: What was asked.
        text: What the model said.
        where: Time, place and box, in words.
        checks: Rows of `check_facts`, `exact` in words.
        attended: (description, share) of the climate tokens that the words of the first fact looked at most.
        pictures: Maps of the fields, and of where the answer comes from.
        seconds: How long the model took for the answer.
    """

    prompt: str
    text: str
    where: str
    checks: tuple[dict[str, Any], ...]
    attended: tuple[tuple[str, float], ...]
    pictures: tuple[Picture, ...]
    seconds: float


class Inquiry:
    """A model and the fields it is asked about.

    Calls may come from several threads: the model answers one at a time, and so are maps drawn.

    Args:
        reader: The model.
        fields: The fields.
        name: Of the model, for people.
        kinds: Kinds of fact that the model was taught, for example questions; None for all.
        abstains: Whether it was taught to say what the fields do not hold.
    """

    def __init__(
        self,
        reader: Reader,
        fields: Fields,
        *,
        name: str = "",
        kinds: Sequence[str] | None = None,
        abstains: bool = True,
    ) -> None:
        self.reader, self.fields, self.name = reader, fields, name
        self.kinds, self.abstains = kinds, abstains
        self._grid = Grid(fields.latitude, fields.longitude)
        self._asking, self._drawing = threading.Lock(), threading.Lock()

    @classmethod
    def open(cls, checkpoint: str | Path, *, climate: str | None = None) -> Inquiry:
        """Open a trained model and the fields to ask it about.

        Args:
            checkpoint: Folder of a run, or of a model.
            climate: A sample, a training store or files; None for the test times of the run.

        Raises:
            ClimafuseError: Model or fields are at fault.
        """
        folder = model_folder(checkpoint)
        reader = load_model(folder)
        run = load_config(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else None
        if climate is not None:
            fields = Fields.of_source(climate, reader.model.config)
        elif run is not None:
            fields = Fields.of_run(run)
        else:
            raise CheckpointError(
                str(folder),
                expected=f"a model of a run, with {CONFIG_FILE} that names its fields",
                received="a model without it",
                remedy="Give --climate.",
            )
        if run is None or run.data.pairs is not None:  # taught by texts whose facts nobody has counted
            return cls(reader, fields, name=str(checkpoint))
        return cls(
            reader,
            fields,
            name=str(checkpoint),
            kinds=run.facts.kinds,
            abstains=run.facts.abstention_fraction > 0,
        )

    def beginning(self) -> tuple[str, str]:
        """Time and place that a page begins with.

        Raises:
            MissingValuesError: There is no value at the places that are tried.
        """
        within = self._grid.centers(*self.reader.model.config.box_size)
        places = BEGINNINGS if within is None else (_coordinates(within.latitude, within.longitude),)
        time = self.fields.times()[0]
        for place in places[:-1]:
            with contextlib.suppress(MissingValuesError, OutOfRangeError):
                self.window(time, place)
                return time, place
        self.window(time, places[-1])
        return time, places[-1]

    def window(self, time: str, place: str) -> Window:
        """What the model is shown.

        Args:
            time: One of the times of the fields.
            place: A name or coordinates.

        Raises:
            ClimafuseError: There is no such time or place, or no value there.
        """
        found = find_place(_short(place, "place"))
        box = found.box(*self.reader.model.config.box_size)
        window = self.fields.cut(self.fields.step_of(_short(time, "time")), box)
        if not window.available():
            raise MissingValuesError(
                place,
                expected=f"values of {' or '.join(window.variables)} there and then",
                received="missing values only",
                remedy="Choose another time or place.",
            )
        return window

    def ask(self, time: str, place: str, prompt: str, *, explain: bool = True, occlude: bool = False) -> Told:
        """Ask a question and check the answer.

        Args:
            time: One of the times of the fields.
            place: A name or coordinates.
            prompt: The question.
            explain: Whether to find out where the words of each fact looked.
            occlude: Whether to hide region after region, and see which of them the words need: a few hundred
                encodings of the window.

        Raises:
            ClimafuseError: There is no such time or place, or the question cannot be asked.
        """
        prompt = " ".join(_short(prompt, "question").split())
        if not prompt:
            raise UsageError(
                "question",
                expected="a question",
                received="nothing",
                remedy="Type one, or choose an example.",
            )
        window, found = self.window(time, place), find_place(place)
        with self._asking:
            start = clock.perf_counter()
            (text,) = self.reader.answer([window], [prompt])
            seconds = clock.perf_counter() - start
            said = parse(text, prompt)
            asked: list[Fact | None] = [*said[:MOST_FACTS]] or [None]  # without a fact, all words together
            origins = [self._origin(window, prompt, text, fact, explain, occlude) for fact in asked if text]
        where = f"{_spoken(window_box(window))}, {time_label(window.time[-1])}"
        exact = {fact.key: fact for fact in extract(window)}
        pictures: list[Picture] = []
        for fact, (_, layers) in zip(asked, origins, strict=False):
            truth = None if fact is None else exact.get(fact.key, replace(fact, value="", cell=None))
            pictures += self._pictures(window, truth, said, layers, where)
        looked = origins[0][0] if origins else None
        return Told(
            prompt,
            text,
            f"{found}, {where}",
            tuple(
                row | {"exact": exact_value(exact[fact.key]) if fact.key in exact else None}
                for fact, row in zip(said, check_facts(text, window, prompt=prompt), strict=True)
            ),
            () if looked is None else looked.tokens[:5],
            tuple(pictures),
            seconds,
        )

    def _origin(
        self, window: Window, prompt: str, text: str, fact: Fact | None, explain: bool, occlude: bool
    ) -> tuple[Attention | None, list[Layer]]:
        looked = attention(self.reader, window, prompt, text, fact) if explain else None
        needed = occlusion(self.reader, window, prompt, text, fact) if occlude else None
        return looked, attribution_layers(looked, needed)

    def _pictures(
        self, window: Window, fact: Fact | None, said: Sequence[Fact], layers: Sequence[Layer], where: str
    ) -> Iterator[Picture]:
        """The field of a fact, and where what was said of it comes from."""
        held = [index for index, name in enumerate(window.variables) if name in window.available()]
        window = replace(
            window, fields=window.fields[:, held], variables=tuple(window.variables[index] for index in held)
        )
        if fact is None:
            fact = Fact("mean", drawn_variables(window.variables)[0], "")
        marks = marks_of(window, fact, said)
        with self._drawing:
            with contextlib.suppress(MissingValuesError):  # there are values at earlier times only
                yield field_picture(window, fact, where, marks)
            yield from (layer_picture(window, layer, where, marks) for layer in layers)

    def examples(self, time: str, place: str) -> list[str]:
        """Questions that can be asked there and then, of as many kinds as there are; the last has no answer there.

        Raises:
            ClimafuseError: There is no such time or place.
        """
        window = self.window(time, place)
        rng = np.random.default_rng(self.fields.step_of(time))
        facts, held = extract(window, kinds=self.kinds), set(window.available())
        taught = list(dict.fromkeys(fact.kind for fact in facts))
        questions: list[str] = []
        variables: dict[str, int] = {}  # how often each was asked about
        for kind in taught[:NUM_EXAMPLES]:
            options = [fact for fact in facts if fact.kind == kind]
            fewest = min(variables.get(fact.variable, 0) for fact in options)
            fact = next(fact for fact in options if variables.get(fact.variable, 0) == fewest)
            variables[fact.variable] = fewest + 1
            questions.append(question_answer(fact, rng)[0])
        unheld = [
            name
            for name in FACT_KINDS["absent"].rules
            if held.isdisjoint(sources(name)) and askable(name, taught)
        ]
        if self.abstains and taught and unheld:
            unheld_name = unheld[int(rng.integers(len(unheld)))]
            questions[NUM_EXAMPLES - 1 :] = [abstention(unheld_name, rng, kinds=taught)[0]]
        return list(dict.fromkeys(questions))

    def locator(self, time: str, place: str) -> Picture:
        """The map to choose a place on, with the box around the chosen place.

        Raises:
            ClimafuseError: There is no such time or place.
        """
        window = self.window(time, place)
        whole = self.fields.cut(self.fields.step_of(time), None)
        (name, *_) = drawn_variables(whole.available())
        found = find_place(place)
        with self._drawing:
            content = draw_locator(whole, name, window_box(window), place=(found.latitude, found.longitude))
        values, unit = spoken_field(whole, name)
        title = long_name(name)
        dark, bright = ("blue", "red") if "anomaly" in name else ("dark", "bright")
        return Picture(
            content,
            f"Map of {title}, to choose a place on. Chosen: {found}",
            f"{title[:1].upper()}{title[1:]}, {time_label(whole.time[-1])}, from {np.nanmin(values):.3g} "
            f"({dark}) to {np.nanmax(values):.3g} {unit} ({bright}). The model sees what lies in the box.",
        )

    def place_at(self, x: float, y: float) -> str:
        """Coordinates of a point on the map of `locator`, as text.

        Args:
            x: From the left edge, as a share of the width.
            y: From the upper edge, as a share of the height.

        Raises:
            UsageError: The point is not on the map.
        """
        return _coordinates(*point_at(self.fields.latitude, self.fields.longitude, x, y))


def _short(text: object, argument: str) -> str:
    """A text from a page: it is one, and of bounded length."""
    if not isinstance(text, str) or len(text) > LONGEST_PROMPT:
        raise UsageError(
            argument,
            expected=f"a text of at most {LONGEST_PROMPT} characters",
            received=f"{len(text):,}" if isinstance(text, str) else f"a {type(text).__name__}",
            remedy="Shorten it." if isinstance(text, str) else "Give a text.",
        )
    return text


def _coordinates(latitude: float, longitude: float) -> str:
    return f"{latitude:.1f},{(longitude + 180) % 360 - 180:.1f}"


def long_name(name: str) -> str:
    """A variable in words, its name where none are known."""
    return VARIABLES[name].long_name if name in VARIABLES else name


def _spoken(box: Box) -> str:
    return (
        f"{_degrees(box.south, 'SN')} to {_degrees(box.north, 'SN')}, "
        f"{_degrees(box.west, 'WE')} to {_degrees(box.east, 'WE')}"
    )


def _degrees(value: float, letters: str) -> str:
    if letters == "WE":
        value = (value + 180) % 360 - 180
    return f"{abs(value):g}°{letters[value >= 0]}"
