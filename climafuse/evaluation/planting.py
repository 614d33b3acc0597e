"""Planted signals: windows with a fact that a known box decides, so that it can be tested whether attribution finds it.

A window of real fields is changed until a box of some of its cells decides a fact: the highest temperature lies there,
a threshold is crossed there and nowhere else, the pressure changes there only. Where a fact is about all cells (a
change, a comparison, the direction of the wind), what the rest of the window had to say of it is taken away first.
That the box decides is not taken for granted: without its cells, the fact must be another.

A signal in one cell or a few is a hill of the height that is needed, its top in the middle of the box. One that moves a
mean is the same in all cells of the box, some 5 to 20 K or hPa, as the box is a seventh of the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from climafuse.data.window import Window
from climafuse.facts import EVENTS, SPOKEN_VARIABLES, Fact, agrees, extract, question_answer
from climafuse.facts.kinds import Qualifiers

SIDE = 3 / 8  # of a planted box, over the shorter side of its window
MOVED = (1.5, 3.0)  # how far a mean is moved, in units of the least that is spoken of
NOTHING = ("equal", "steady", "no", "calm")  # what a fact says where there is no signal


@dataclass(frozen=True, eq=False)
class Planted:
    """A window with a signal, and the question that asks for it.

    Args:
        signal: Name of the signal.
        window: The fields with the signal.
        box: [H, W] bool, the cells that decide the fact.
        fact: The exact fact.
        prompt: The question.
        answer: The right answer.
    """

    signal: str
    window: Window
    box: np.ndarray
    fact: Fact
    prompt: str
    answer: str


class Soil:
    """A window that a signal is put into.

    Args:
        window: The window; it is not changed.
        box: [H, W] bool, where the signal goes.
        rng: Chooses the size of the signal, and its sign.

    Attributes:
        fields: [T, V, H, W] float64 in SI units, to be changed in place.
        weight: [H, W] area of the cells, sum one.
        hill: [H, W] one in the middle of the box, a third at its edge, zero outside.
    """

    def __init__(self, window: Window, box: np.ndarray, rng: np.random.Generator) -> None:
        self.window, self.box, self.rng = window, box, rng
        self.fields = window.fields.astype(np.float64)
        weight = np.maximum(np.cos(np.deg2rad(window.latitude)), 1e-12)[:, None] * np.ones(box.shape)
        self.weight = weight / weight.sum()
        north, east = (_distance(np.asarray(box.any(axis=axis))) for axis in (1, 0))
        self.hill = np.where(box, 1 - (2 / 3) * np.maximum(north[:, None], east[None, :]), 0.0)

    def field(self, name: str) -> np.ndarray:
        """One variable, [T, H, W], a view."""
        return self.fields[:, self.window.variables.index(name)]

    def raise_hill(self, name: str, top: float, sign: int) -> None:
        """Put a hill (sign 1) or a hollow (-1) into the box whose top is this value at the valid time."""
        field = self.field(name)
        missing = sign * (top - field[-1])[self.box] / self.hill[self.box]
        field += sign * max(np.nanmin(missing), 0.0) * self.hill

    def move(self, name: str, steps: slice, sign: float, share: float) -> None:
        """Add to all of the box what moves the mean of such a share of the window by what is spoken of."""
        spoken = SPOKEN_VARIABLES[name]
        needed = spoken.margin * self.rng.uniform(*MOVED) / spoken.scale
        self.field(name)[steps] += sign * needed * share / (self.weight * self.box).sum() * self.box

    def planted(self) -> Window:
        """The window as it is now; wind speed is that of its components."""
        if {"u10", "v10", "ws10"} <= set(self.window.variables):
            self.field("ws10")[:] = np.hypot(self.field("u10"), self.field("v10"))
        return replace(self.window, fields=self.fields.astype(np.float32))


def _distance(side: np.ndarray) -> np.ndarray:
    """From the middle of a run of cells, 0, to beyond its ends, 1."""
    inside = np.flatnonzero(side)
    return 2 * np.abs(np.arange(len(side)) - (inside[0] + inside[-1]) / 2) / len(inside)


def _highest(soil: Soil, name: str) -> None:
    _extreme(soil, name, 1)


def _lowest(soil: Soil, name: str) -> None:
    _extreme(soil, name, -1)


def _extreme(soil: Soil, name: str, sign: int) -> None:
    """Three to six spoken units beyond the rest of the window."""
    rest = np.nanmax(sign * soil.field(name)[-1][~soil.box])
    soil.raise_hill(name, sign * (rest + soil.rng.uniform(3, 6) / SPOKEN_VARIABLES[name].scale), sign)


def _frost(soil: Soil, name: str) -> None:
    """The rest is above the freezing point by two to four degrees at least, the box below it by one to three."""
    field, freezing = soil.field(name), 273.15 + EVENTS["freezing"].threshold
    field += freezing + soil.rng.uniform(2, 4) - np.nanmin(field[-1])
    soil.raise_hill(name, freezing - soil.rng.uniform(1, 3), -1)


def _strong_wind(soil: Soil, name: str) -> None:
    """The rest stays a tenth or more below the threshold, the middle of the box goes beyond it."""
    threshold = EVENTS["strong_wind"].threshold
    speed = np.hypot(soil.field("u10"), soil.field("v10"))
    calmer = min(0.9 * threshold / max(float(np.nanmax(speed)), 1e-6), 1.0)
    stronger = threshold * soil.rng.uniform(1.15, 1.5) / np.maximum(speed, 0.1)
    factor = np.where(soil.hill > 0.5, np.maximum(stronger, 1), calmer)
    for component in ("u10", "v10"):
        soil.field(component)[:] *= factor


def _change(soil: Soil, name: str) -> None:
    """The earlier fields are the last one, but for the box."""
    soil.field(name)[:-1] = soil.field(name)[-1]
    soil.move(name, slice(-1, None), soil.rng.choice([-1.0, 1.0]), 1.0)


def _contrast(soil: Soil, name: str) -> None:
    """North and south, west and east have the same mean, but for the box, which makes the half it lies in higher."""
    field = soil.field(name)
    north, east = (np.sign(np.linspace(-1, 1, n)) for n in soil.box.shape)
    for side in (north[:, None] * np.ones(soil.box.shape), east * np.ones(soil.box.shape)):
        upper, lower = (np.average(field[-1], weights=soil.weight * (side == s)) for s in (1, -1))
        field -= (upper - lower) / 2 * side
    soil.move(name, slice(None), 1.0, 0.5)


def _wind(soil: Soil, name: str) -> None:
    """A wind of 12 to 16 m/s in the box, little and of no direction elsewhere."""
    toward, speed = np.deg2rad(45 * soil.rng.integers(8)), soil.rng.uniform(12, 16)
    for component, share in (("u10", np.sin(toward)), ("v10", np.cos(toward))):
        field = soil.field(component)
        field -= np.average(field[-1], weights=soil.weight * ~soil.box)
        field *= 0.25
        field[:, soil.box] = speed * share


@dataclass(frozen=True)
class Signal:
    """A kind of planted signal.

    Args:
        kind: Of the fact that it decides.
        variable: Of the fact.
        plant: Puts the signal into soil; told the variable.
        needs: Variables that the window must hold.
        qualifiers: Of the fact.
    """

    kind: str
    variable: str
    plant: Callable[[Soil, str], None]
    needs: tuple[str, ...]
    qualifiers: Qualifiers = ()

    @property
    def name(self) -> str:
        """Such as "maximum/t2m" or "event/ws10 strong_wind"."""
        return " ".join([f"{self.kind}/{self.variable}", *(value for _, value in self.qualifiers)])


SIGNALS: tuple[Signal, ...] = (
    *(
        Signal(f"{extreme}{position}", name, plant, (name,))
        for position in ("", "_position")
        for extreme, plant in (("maximum", _highest), ("minimum", _lowest))
        for name in ("t2m", "msl")
    ),
    Signal("event", "t2m", _frost, ("t2m",), (("event", "freezing"),)),
    Signal("event", "ws10", _strong_wind, ("u10", "v10"), (("event", "strong_wind"),)),
    *(Signal(kind, name, _change, (name,)) for kind in ("change", "tendency") for name in ("t2m", "msl")),
    *(
        Signal("comparison", name, _contrast, (name,), (("axis", axis),))
        for name in ("t2m", "msl")
        for axis in ("north-south", "west-east")
    ),
    Signal("direction", "wd10", _wind, ("u10", "v10")),
)


def plant(windows: Sequence[Window], *, seed: int = 0, signals: Sequence[Signal] = SIGNALS) -> list[Planted]:
    """Put every signal into every window, each in a box of its own.

    Args:
        windows: Of real fields, 3 by 3 cells or more.
        seed: Of the boxes, sizes and wordings.
        signals: Which signals.

    Returns:
        Those in which the box decides the fact, signal by signal: windows that lack a variable, a value or a second
        time have nothing to plant into, and in some the rest of the window outweighs the box.
    """
    made = [
        _plant(window, signal, np.random.default_rng((seed, number, place)))
        for place, signal in enumerate(signals)
        for number, window in enumerate(windows)
    ]
    return [planted for planted in made if planted is not None]


def _plant(window: Window, signal: Signal, rng: np.random.Generator) -> Planted | None:
    height, width = window.fields.shape[2:]
    side = max(round(SIDE * min(height, width)), 1)
    if not set(signal.needs) <= set(window.available()) or min(height, width) < 3:
        return None
    row, column = (int(rng.integers(n - side + 1)) for n in (height, width))
    box = np.zeros((height, width), dtype=bool)
    box[row : row + side, column : column + side] = True
    soil = Soil(window, box, rng)
    signal.plant(soil, signal.variable)
    with_signal = soil.planted()
    fact = _fact(with_signal, signal)
    if fact is None or fact.value in NOTHING or not np.isfinite(with_signal.fields[..., box]).all():
        return None
    without = _fact(replace(with_signal, fields=np.where(box, np.nan, with_signal.fields)), signal)
    if without is not None and agrees(without, fact):
        return None
    prompt, answer = question_answer(fact, rng)
    return Planted(signal.name, with_signal, box, fact, prompt, answer)


def _fact(window: Window, signal: Signal) -> Fact | None:
    facts = extract(window, kinds=[f"{signal.kind}/{signal.variable}"])
    return next((fact for fact in facts if fact.qualifiers == signal.qualifiers), None)
