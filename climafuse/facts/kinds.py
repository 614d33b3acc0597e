"""Facts: what they are, how each is defined, how it is rounded when spoken, how close it must be to count.

A fact is one checkable statement about a window. ``SPOKEN_VARIABLES`` says how a variable is spoken and
``FACT_KINDS`` is the one table of kinds: for every kind and variable a ``Rule`` with unit, rounding and
tolerance. Extraction, phrasing, parsing and scoring all read it; none has a number of its own.

Definitions
-----------
With cells *i* at latitude φᵢ, weights wᵢ = cos φᵢ, and x the field in its spoken unit at the valid time t₁
(the last of the window); cells with a missing value are left out and the weights of the others renormalized:

================  ===========================================================================================
kind              definition
================  ===========================================================================================
mean              Σ wᵢ xᵢ / Σ wᵢ. Of wind speed, the mean of the cells' speeds √(u² + v²), not the speed of
                  the mean vector
maximum           max xᵢ
minimum           min xᵢ
maximum_position  latitude and longitude of the (first) cell with the highest value; stated only where highest
                  and lowest differ when spoken: an even field has no place of extremes
minimum_position  the same of the lowest value
direction         where the mean vector comes from, 180° + atan2(Σ wᵢ uᵢ, Σ wᵢ vᵢ), degrees clockwise from
                  north, over cells with both components; "calm" where the mean vector is shorter than 0.5
                  m/s. Spoken as one of eight octants, each 45° wide and centered on its name
change            Σ wᵢ (xᵢ(t₁) − xᵢ(t₀)) / Σ wᵢ over cells valid at both, t₀ the first time of the window
tendency          of the change c, with s = ``SpokenVariable.margin``: "rising" c ≥ s, "falling" c ≤ −s, else
                  "steady"
comparison        d = mean of one half − mean of the other: the half with the higher mean where |d| ≥ s, else
                  "equal". Halves are the rows north and south of the middle latitude, or the columns west and
                  east of the middle column; a row or column in the middle belongs to neither, and a window
                  that goes all the way around has no west and east
event             "yes" where any cell is past the threshold of ``EVENTS``, else "no"
anomaly           Σ wᵢ (xᵢ − cᵢ) / Σ wᵢ with the climatology c of the cell (and of the month, where c has
                  months). Of sea surface temperature also from a field of anomalies, less a climatology of
                  them where one is given: this re-bases them
anomaly_class     of the anomaly a, with ``SpokenVariable.normal`` = (n, f): "near normal" |a| < n, "above" or
                  "below normal" n ≤ |a| < f, "well above" or "well below normal" |a| ≥ f
nino34            Σ wᵢ aᵢ / Σ wᵢ of the anomaly a of sea surface temperature over the cells whose center lies
                  within 5°S to 5°N, 170°W to 120°W, edges included; stated only where the window cuts off no
                  cell of that box
enso              "El Niño" nino34 ≥ 0.5 K, "La Niña" nino34 ≤ −0.5 K, else "neutral": the state at the valid
                  time, not the event of several seasons that NOAA declares
absent            the fields hold no value of the variable
================  ===========================================================================================

A fact counts if what was *spoken* is near enough to the *exact* extracted value (``agrees``): numbers within
the tolerance of the rule, or within its relative part where that is larger; positions within one cell of the
grid in latitude and in longitude; octants within 22.5° + 5° of their center; classes exactly.

Reference: Beaufort forces 6 (strong breeze, 10.8 m/s) and 8 (gale, 17.2 m/s); NOAA Climate Prediction Center
for the Niño 3.4 region and the thresholds of ±0.5 K.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from climafuse.errors import PairsError, UsageError
from climafuse.facts.unseen import UNSEEN_NAMES

Value = float | str | tuple[float, float]
Qualifiers = tuple[tuple[str, str], ...]

OCTANTS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
CALM = "calm"
CALM_SPEED = 0.5  # m/s, of the mean vector
OCTANT_GRACE = 5.0  # degrees beyond the edge of an octant
NINO34_LATITUDE = (-5.0, 5.0)
NINO34_LONGITUDE = (190.0, 240.0)  # 170°W to 120°W
ENSO_THRESHOLD = 0.5  # K
EARTH_RADIUS = 6371.0  # km, for the distance between two positions


@dataclass(frozen=True, slots=True)
class Fact:
    """One checkable statement about a window.

    Args:
        kind: A key of ``FACT_KINDS``.
        variable: Canonical name of what it is about; "ws10" for wind speed, "wd10" for wind direction.
            Anomalies carry the variable they are an anomaly of.
        value: In spoken units. Extracted: at full precision, degrees for a direction, (latitude, longitude)
            for a position. Spoken or parsed: rounded, the octant for a direction.
        qualifiers: What else tells this fact from others of its kind and variable, such as which halves are
            compared; (name, value) pairs.
        cell: Height and width of a grid cell in degrees, of positions only: their tolerance. No part of
            equality, for words do not tell it.
    """

    kind: str
    variable: str
    value: Value
    qualifiers: Qualifiers = ()
    cell: tuple[float, float] | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[str, str, Qualifiers]:
        """What the fact is about: facts with one key answer the same question."""
        return self.kind, self.variable, self.qualifiers

    def qualifier(self, name: str) -> str:
        """The value of one qualifier."""
        return dict(self.qualifiers)[name]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; ``from_dict`` is the inverse."""
        value: Any = list(self.value) if isinstance(self.value, tuple) else self.value
        result: dict[str, Any] = {"kind": self.kind, "variable": self.variable, "value": value}
        if self.qualifiers:
            result["qualifiers"] = dict(self.qualifiers)
        if self.cell is not None:
            result["cell"] = list(self.cell)
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fact:
        """From the dictionary of ``to_dict``, as read from a file of pairs.

        Raises:
            PairsError: The dictionary is no fact.
        """
        try:
            value, cell = data["value"], data.get("cell")
            fact = cls(
                kind=data["kind"],
                variable=data["variable"],
                value=_position(value) if isinstance(value, list | tuple) else value,
                qualifiers=tuple(sorted(dict(data.get("qualifiers", {})).items())),
                cell=None if cell is None else _position(cell),
            )
            good = isinstance(fact.kind, str) and isinstance(fact.variable, str) and _is_value(fact.value)
        except (KeyError, TypeError, ValueError, AttributeError):
            good = False
        if not good:
            raise PairsError(
                "facts",
                expected='a dictionary such as {"kind": "mean", "variable": "t2m", "value": 8.3}',
                received=repr(data),
                remedy="Write facts with Fact.to_dict().",
            )
        return fact


def _position(value: Iterable[Any]) -> tuple[float, float]:
    latitude, longitude = value
    return float(latitude), float(longitude)


def _is_value(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, str | tuple) or (isinstance(value, int | float) and math.isfinite(value))


@dataclass(frozen=True)
class SpokenVariable:
    """How a variable is spoken.

    Args:
        name: In words; no two alike.
        unit: As spoken.
        scale: Spoken value = SI value × scale + offset.
        offset: See scale.
        decimals: Spoken digits after the point.
        tolerance: How close a spoken value must be, in the spoken unit.
        relative: The same as a share of the exact value; the larger of the two counts.
        margin: A change or a difference smaller than this is "steady" or "equal".
        normal: (near, far) for the classes of anomalies; None where anomalies are not spoken.
        anomaly_decimals: Spoken digits of an anomaly after the point.
        anomaly_tolerance: How close a spoken anomaly must be.
        without: Kinds that are not spoken of this variable.
    """

    name: str
    unit: str
    scale: float = 1.0
    offset: float = 0.0
    decimals: int = 0
    tolerance: float = 1.0
    relative: float = 0.0
    margin: float = 1.0
    normal: tuple[float, float] | None = None
    anomaly_decimals: int = 1
    anomaly_tolerance: float = 0.5
    without: tuple[str, ...] = ()


# The lowest precipitation is nearly always zero, and everywhere.
_NO_MINIMUM = ("minimum", "minimum_position")
_STANDARD_GRAVITY = 9.80665  # m s-2, geopotential to geopotential height

SPOKEN_VARIABLES: dict[str, SpokenVariable] = {
    "t2m": SpokenVariable("temperature", "°C", offset=-273.15, normal=(1.0, 4.0)),
    "d2m": SpokenVariable("dew point", "°C", offset=-273.15, normal=(1.0, 4.0)),
    "t850": SpokenVariable("850 hPa temperature", "°C", offset=-273.15, normal=(1.0, 4.0)),
    "sst": SpokenVariable("sea surface temperature", "°C", offset=-273.15, margin=0.5, normal=(0.5, 1.5)),
    # Its mean is the kind "anomaly" of sst.
    "sst_anomaly": SpokenVariable(
        "sea surface temperature anomaly", "°C", decimals=1, tolerance=0.5, margin=0.5, without=("mean",)
    ),
    "msl": SpokenVariable(
        "pressure", "hPa", scale=0.01, normal=(2.0, 10.0), anomaly_decimals=0, anomaly_tolerance=1.0
    ),
    "sp": SpokenVariable(
        "surface pressure", "hPa", scale=0.01, normal=(2.0, 10.0), anomaly_decimals=0, anomaly_tolerance=1.0
    ),
    "ws10": SpokenVariable("wind speed", "m/s", normal=(0.5, 2.0)),
    # An hour's mean over an area is mostly below 0.3 mm: a looser tolerance would let a constant pass.
    "tp": SpokenVariable(
        "precipitation",
        "mm",
        scale=1e3,
        decimals=1,
        tolerance=0.1,
        relative=0.25,
        margin=0.1,
        without=_NO_MINIMUM,
    ),
    "tprate": SpokenVariable(
        "precipitation rate",
        "mm/day",
        scale=86400.0,
        decimals=1,
        tolerance=0.5,
        relative=0.25,
        margin=0.5,
        without=_NO_MINIMUM,
    ),
    "z500": SpokenVariable(
        "500 hPa height",
        "dam",
        scale=0.1 / _STANDARD_GRAVITY,
        normal=(2.0, 10.0),
        anomaly_decimals=0,
        anomaly_tolerance=1.0,
    ),
    "q850": SpokenVariable("850 hPa specific humidity", "g/kg", scale=1e3, normal=(1.0, 3.0)),
}

# Variables of facts that are no number.
OTHER_NAMES: dict[str, str] = {"wd10": "wind direction"}


@dataclass(frozen=True)
class Event:
    """A threshold and its name.

    Args:
        variable: Canonical name.
        threshold: In the spoken unit.
        below: The event is a value < threshold; otherwise a value ≥ threshold.
        noun: The event in words; no two alike.
        beyond: The threshold in words, after "the temperature goes".
    """

    variable: str
    threshold: float
    below: bool
    noun: str
    beyond: str


EVENTS: dict[str, Event] = {
    "freezing": Event("t2m", 0.0, True, "frost", "below 0 °C"),
    "heat": Event("t2m", 30.0, False, "heat", "to 30 °C or more"),
    "strong_wind": Event("ws10", 10.8, False, "strong wind", "to 10.8 m/s or more"),
    "gale": Event("ws10", 17.2, False, "gale-force wind", "to 17.2 m/s or more"),
    "wet": Event("tp", 1.0, False, "wet weather", "to 1 mm or more"),
    "heavy_precipitation": Event("tp", 10.0, False, "heavy precipitation", "to 10 mm or more"),
}

AXES: dict[str, tuple[str, str]] = {"north-south": ("north", "south"), "west-east": ("west", "east")}

Form = Literal["number", "position", "direction", "class"]


@dataclass(frozen=True)
class Rule:
    """How facts of one kind and variable are spoken and judged.

    Args:
        unit: As spoken; also the unit of the numeric error ("°" for directions, "km" for positions, "" for
            classes).
        decimals: Spoken digits after the point; of positions the cell decides.
        tolerance: How close the spoken value must be, in this unit; of positions one cell, of octants 5°
            beyond the edge.
        relative: The same as a share of the exact value; the larger of the two counts.
    """

    unit: str = ""
    decimals: int = 0
    tolerance: float = 0.0
    relative: float = 0.0


@dataclass(frozen=True)
class FactKind:
    """One kind of fact.

    Args:
        name: The key in ``FACT_KINDS``.
        form: What its value is.
        topic: The kind as a topic of a bulletin, with the slots of phrasing.
        rules: Variable → rule; what it lacks is not stated.
        values: The classes, of a class.
        qualifier: Name of the qualifier that its facts carry, if any.
    """

    name: str
    form: Form
    topic: str
    rules: dict[str, Rule]
    values: tuple[str, ...] = ()
    qualifier: str | None = None


_CLASS = Rule()
_POSITION = Rule("km")


def rules_of(variable: str, quantity: SpokenVariable) -> dict[str, Rule]:
    """The rules of one variable: what can be stated of any quantity, by kind."""
    number = Rule(quantity.unit, quantity.decimals, quantity.tolerance, quantity.relative)
    rules = {
        "mean": number,
        "maximum": number,
        "minimum": number,
        "maximum_position": _POSITION,
        "minimum_position": _POSITION,
        "change": number,
        "tendency": _CLASS,
        "comparison": _CLASS,
        "absent": _CLASS,
    }
    if any(event.variable == variable for event in EVENTS.values()):
        rules["event"] = _CLASS
    if quantity.normal is not None:
        rules["anomaly"] = Rule(quantity.unit, quantity.anomaly_decimals, quantity.anomaly_tolerance)
        rules["anomaly_class"] = _CLASS
    return {kind: rule for kind, rule in rules.items() if kind not in quantity.without}


def _rules(kind: str) -> dict[str, Rule]:
    every = ((variable, rules_of(variable, quantity)) for variable, quantity in SPOKEN_VARIABLES.items())
    return {variable: rules[kind] for variable, rules in every if kind in rules}


_TRENDS = ("rising", "falling", "steady")
_HALVES = ("north", "south", "west", "east", "equal")
_DEPARTURES = ("near normal", "above normal", "well above normal", "below normal", "well below normal")

FACT_KINDS: dict[str, FactKind] = {
    kind.name: kind
    for kind in (
        FactKind("mean", "number", "mean {name}", _rules("mean")),
        FactKind("maximum", "number", "highest {name}", _rules("maximum")),
        FactKind("minimum", "number", "lowest {name}", _rules("minimum")),
        FactKind("maximum_position", "position", "place of highest {name}", _rules("maximum_position")),
        FactKind("minimum_position", "position", "place of lowest {name}", _rules("minimum_position")),
        FactKind(
            "direction", "direction", "{name}", {"wd10": Rule("°", tolerance=OCTANT_GRACE)}, (*OCTANTS, CALM)
        ),
        FactKind("change", "number", "change of {name}", _rules("change")),
        FactKind("tendency", "class", "tendency of {name}", _rules("tendency"), _TRENDS),
        FactKind(
            "comparison",
            "class",
            "{first}-{second} contrast of {name}",
            _rules("comparison"),
            _HALVES,
            "axis",
        ),
        FactKind("event", "class", "{event}", _rules("event"), ("yes", "no"), "event"),
        FactKind("anomaly", "number", "{name} anomaly", _rules("anomaly")),
        FactKind("anomaly_class", "class", "class of {name} anomaly", _rules("anomaly_class"), _DEPARTURES),
        FactKind("nino34", "number", "Niño 3.4 index", {"sst": Rule("°C", decimals=1, tolerance=0.3)}),
        FactKind("enso", "class", "ENSO state", {"sst": _CLASS}, ("El Niño", "La Niña", "neutral")),
        FactKind(
            "absent",
            "class",
            "absence of {name}",
            _rules("absent") | dict.fromkeys((*OTHER_NAMES, *UNSEEN_NAMES), _CLASS),
            ("absent",),
        ),
    )
}

# What a variable of facts is computed from, where that is not simply the field of its name; any of these will
# do for wind speed (with u10 and v10 together) and sea surface temperature.
_SOURCES: dict[str, tuple[str, ...]] = {
    "ws10": ("ws10", "u10", "v10"),
    "wd10": ("u10", "v10"),
    "sst": ("sst", "sst_anomaly"),
}


def sources(variable: str) -> tuple[str, ...]:
    """Fields that a variable of facts can come from: without all of them, nothing can be said of it."""
    return _SOURCES.get(variable, (variable,))


def name_of(variable: str) -> str:
    """A variable in words.

    Raises:
        UsageError: No word is known for it.
    """
    if variable in SPOKEN_VARIABLES:
        return SPOKEN_VARIABLES[variable].name
    name = OTHER_NAMES.get(variable) or UNSEEN_NAMES.get(variable)
    if name is None:
        raise UsageError(
            "variable",
            expected=f"one of {', '.join((*SPOKEN_VARIABLES, *OTHER_NAMES, *UNSEEN_NAMES))}",
            received=variable,
            remedy="Register it with climafuse.facts.register_variable, or ask for another.",
        )
    return name


def rule_of(fact: Fact) -> Rule:
    """The rule of a fact.

    Raises:
        UsageError: There is none: no such kind, or not of this variable.
    """
    kind = FACT_KINDS.get(fact.kind)
    if kind is None or fact.variable not in kind.rules:
        raise UsageError(
            "fact",
            expected=f"a kind of {', '.join(FACT_KINDS)}"
            if kind is None
            else f"a variable of {', '.join(kind.rules)}",
            received=f"{fact.kind} of {fact.variable}",
            remedy="Register the kind or the quantity: climafuse.facts.register_kind, register_variable.",
        )
    return kind.rules[fact.variable]


def select_kinds(kinds: Iterable[str] | None) -> frozenset[tuple[str, str]]:
    """(kind, variable) pairs that a choice of kinds names.

    Args:
        kinds: Names such as "mean" (of every variable) or "mean/t2m"; None for all.

    Raises:
        UsageError: A name is unknown.
    """
    if kinds is None:
        return frozenset((name, variable) for name, kind in FACT_KINDS.items() for variable in kind.rules)
    chosen: set[tuple[str, str]] = set()
    for text in kinds:
        name, _, variable = text.partition("/")
        if name not in FACT_KINDS or (variable and variable not in FACT_KINDS[name].rules):
            raise UsageError(
                "kinds",
                expected=f"{', '.join(FACT_KINDS)}, or one of a variable, such as mean/t2m",
                received=text,
                remedy="Choose from the table of climafuse.facts.FACT_KINDS.",
            )
        chosen.update((name, known) for known in FACT_KINDS[name].rules if variable in ("", known))
    return frozenset(chosen)


def spoken(fact: Fact) -> Fact:
    """The fact as words tell it: rounded, a direction as its octant.

    Args:
        fact: Extracted; a spoken fact stays as it is.

    Returns:
        What ``parse`` finds in any phrasing of the fact.
    """
    rule, value = rule_of(fact), fact.value
    if isinstance(value, tuple):
        decimals = position_decimals(fact.cell)
        latitude, longitude = round(value[0], decimals), round(value[1], decimals) % 360.0
        value = (latitude + 0.0, round(longitude, decimals) + 0.0)  # + 0.0: no "-0"
    elif not isinstance(value, str):
        form = FACT_KINDS[fact.kind].form
        value = (
            OCTANTS[round(value / 45.0) % 8]
            if form == "direction"
            else round(float(value), rule.decimals) + 0.0
        )
    return Fact(fact.kind, fact.variable, value, fact.qualifiers, fact.cell)


def position_decimals(cell: tuple[float, float] | None) -> int:
    """Digits after the point of a spoken position: as many as a cell needs, none for cells of 1°.

    Without a cell the position was spoken already and keeps what it has, at most three digits.
    """
    if cell is None:
        return 3
    return min(max(math.ceil(-math.log10(min(cell)) - 1e-9), 0), 3)


def agrees(stated: Fact, exact: Fact) -> bool:
    """Whether a stated fact is near enough to the exact one to count.

    Args:
        stated: Parsed from words (or exact itself).
        exact: Extracted, with the same key.

    Returns:
        True within the tolerance of the table; False otherwise, or where the two are about different things.
    """
    if stated.key != exact.key:
        return False
    if isinstance(stated.value, str) and isinstance(exact.value, str):
        return stated.value == exact.value
    rule = rule_of(exact)
    if isinstance(stated.value, tuple) and isinstance(exact.value, tuple):
        height, width = exact.cell or (1.0, 1.0)
        return (
            abs(stated.value[0] - exact.value[0]) <= height + 1e-6
            and _turn(stated.value[1], exact.value[1]) <= width + 1e-6
        )
    difference = error(stated, exact)
    if difference is None:
        return False  # a number stated where the truth is a word such as "calm", or the other way round
    if FACT_KINDS[exact.kind].form == "direction":
        return difference <= 22.5 + rule.tolerance
    assert isinstance(exact.value, int | float)
    return difference <= max(rule.tolerance, rule.relative * abs(exact.value)) + 1e-9


def error(stated: Fact, exact: Fact) -> float | None:
    """Distance of a stated fact from the exact one.

    Args:
        stated: Parsed from words.
        exact: Extracted, of the same kind and variable.

    Returns:
        In the unit of the rule: |difference| of numbers, degrees between the center of an octant and a
        direction, km along the great circle between positions; None for classes and calm.
    """
    a, b = stated.value, exact.value
    if isinstance(a, tuple) and isinstance(b, tuple):
        return _distance(a, b)
    if FACT_KINDS[exact.kind].form == "direction":
        first, second = _degrees(a), _degrees(b)
        return None if first is None or second is None else _turn(first, second)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b)
    return None


def _degrees(direction: Value) -> float | None:
    if isinstance(direction, str):
        return OCTANTS.index(direction) * 45.0 if direction in OCTANTS else None
    return None if isinstance(direction, tuple) else float(direction)


def _turn(a: float, b: float) -> float:
    """Smaller angle between two directions or longitudes, degrees."""
    return abs((a - b + 180.0) % 360.0 - 180.0)


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Great-circle distance, km (haversine)."""
    south, north = math.radians(a[0]), math.radians(b[0])
    half_turn = math.radians(a[1] - b[1]) / 2
    h = math.sin((north - south) / 2) ** 2 + math.cos(south) * math.cos(north) * math.sin(half_turn) ** 2
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(h)))
