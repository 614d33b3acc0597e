"""Facts as numbers and back: what a network without words must give to state a fact, and how its error counts.

There is one row of `FORMS` for each form of fact; kinds, classes, units and tolerances come from `FACT_KINDS`.

=========  ===================================================================  ==================================
form       outputs                                                              loss
=========  ===================================================================  ==================================
number     the value, in spreads of the training values around their median     |error|, squared within tolerance
position   north and east of the box's center, in halves of the box             the same, tolerance one cell
direction  the unit vector to where the wind comes from; a logit of "calm"      squared distance; cross-entropy
class      a logit for each class                                               cross-entropy
=========  ===================================================================  ==================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from climafuse.data.window import Window
from climafuse.errors import CheckpointError
from climafuse.facts import Fact, spoken
from climafuse.facts.extract import cell_size
from climafuse.facts.kinds import CALM, FACT_KINDS, OCTANTS, Form, Qualifiers, Value, rule_of

Key = tuple[str, str, Qualifiers]
NUM_TARGETS = 4  # numbers that stand for a true value; what a form does not need is 0


@dataclass(frozen=True)
class Frame:
    """Where a window lies: positions are told relative to it.

    Args:
        latitude: Of the center, degrees north.
        longitude: Of the center, degrees east.
        height: From the center to the northern edge, degrees.
        width: From the center to the eastern edge, degrees.
        cell: Height and width of a cell, degrees.
    """

    latitude: float
    longitude: float
    height: float
    width: float
    cell: tuple[float, float]

    @classmethod
    def of(cls, window: Window) -> Frame:
        """The frame of a window: its outermost cells, edges included."""
        cell = cell_size(window)
        south, north = float(window.latitude[0]), float(window.latitude[-1])
        west, east = float(window.longitude[0]), float(window.longitude[-1])
        span = (east - west) % 360.0
        return cls(
            (south + north) / 2,
            west + span / 2,
            (north - south + cell[0]) / 2,
            (span + cell[1]) / 2,
            cell,
        )


@dataclass(frozen=True)
class Topic:
    """What a head answers: facts of one key.

    Args:
        kind: Kind of the facts.
        variable: Their variable.
        qualifiers: Their qualifiers.
        values: Classes they may take, in the order of the logits.
        center: Median of the training values, of numbers.
        spread: Their standard deviation, but no less than the tolerance.
    """

    kind: str
    variable: str
    qualifiers: Qualifiers = ()
    values: tuple[str, ...] = ()
    center: float = 0.0
    spread: float = 1.0

    @property
    def key(self) -> Key:
        """As of `Fact.key`."""
        return self.kind, self.variable, self.qualifiers

    @property
    def form(self) -> Form:
        """Form of the facts."""
        return FACT_KINDS[self.kind].form

    @classmethod
    def of(cls, key: Key, facts: Sequence[Fact]) -> Topic:
        """The topic of the training facts of one key."""
        values = FACT_KINDS[key[0]].values
        if FACT_KINDS[key[0]].form != "number":
            return cls(*key, values)
        numbers = np.array([fact.value for fact in facts], dtype=np.float64)
        least = rule_of(facts[0]).tolerance or 1.0
        return cls(*key, values, float(np.median(numbers)), max(float(numbers.std()), least))

    def targets(self, fact: Fact, frame: Frame) -> tuple[float, ...]:
        """The true value as `NUM_TARGETS` numbers."""
        given = FORMS[self.form].targets(self, fact, frame)
        return (*given, *(0.0,) * (NUM_TARGETS - len(given)))

    def fact(self, outputs: Sequence[float], frame: Frame) -> Fact:
        """The fact that outputs of the head mean, as it is spoken."""
        value = FORMS[self.form].value(self, outputs, frame)
        return spoken(Fact(self.kind, self.variable, value, self.qualifiers, frame.cell))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Topic:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: It is no topic, or of a kind or variable that is not known here.
        """
        try:
            topic = cls(
                content["kind"],
                content["variable"],
                tuple((str(name), str(value)) for name, value in content["qualifiers"]),
                tuple(content["values"]),
                float(content["center"]),
                float(content["spread"]),
            )
            known = topic.variable in FACT_KINDS[topic.kind].rules and topic.spread > 0
        except (KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise CheckpointError(
                "topics",
                expected="kinds and variables of climafuse.facts.FACT_KINDS",
                received=repr(content),
                remedy="Register the kind or variable first, or copy the file again.",
            )
        return topic


@dataclass(frozen=True)
class FormOfFact:
    """How facts of one form become numbers.

    Args:
        size: How many outputs a head of a topic has.
        targets: (topic, exact fact, frame) → at most `NUM_TARGETS` numbers.
        loss: (outputs [N, ≥ size], targets [N, NUM_TARGETS]) → [N]. What a head of fewer classes lacks of the
            outputs is -inf.
        value: (topic, outputs, frame) → the value of the fact.
    """

    size: Callable[[Topic], int]
    targets: Callable[[Topic, Fact, Frame], tuple[float, ...]]
    loss: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Topic, Sequence[float], Frame], Value]


def topics_of(facts: Iterable[tuple[Key, Fact]]) -> tuple[Topic, ...]:
    """The topics that training tells a value of, in the order of their keys.

    Args:
        facts: What was asked for, and the exact answer; an absence tells no value.
    """
    told: dict[Key, list[Fact]] = {}
    for key, fact in facts:
        if fact.kind != "absent":
            told.setdefault(key, []).append(fact)
    return tuple(Topic.of(key, told[key]) for key in sorted(told))


def _robust(error: Tensor, grace: Tensor) -> Tensor:
    """|error| less half the grace; squared within the grace, so that nothing is gained by being exact."""
    error = error.abs()
    return torch.where(error < grace, error.square() / (2 * grace), error - grace / 2)


def _number_targets(topic: Topic, fact: Fact, frame: Frame) -> tuple[float, ...]:
    rule = rule_of(fact)
    value = float(fact.value)  # type: ignore[arg-type]
    grace = max(rule.tolerance, rule.relative * abs(value)) or topic.spread
    return (value - topic.center) / topic.spread, grace / topic.spread


def _number_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return _robust(outputs[:, 0] - targets[:, 0], targets[:, 1])


def _number_value(topic: Topic, outputs: Sequence[float], frame: Frame) -> Value:
    return outputs[0] * topic.spread + topic.center


def _position_targets(topic: Topic, fact: Fact, frame: Frame) -> tuple[float, ...]:
    assert isinstance(fact.value, tuple)
    latitude, longitude = fact.value
    east = (longitude - frame.longitude + 180.0) % 360.0 - 180.0
    return (
        (latitude - frame.latitude) / frame.height,
        east / frame.width,
        frame.cell[0] / frame.height,
        frame.cell[1] / frame.width,
    )


def _position_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return _robust(outputs[:, :2] - targets[:, :2], targets[:, 2:]).mean(dim=1)


def _position_value(topic: Topic, outputs: Sequence[float], frame: Frame) -> Value:
    # Nothing lies beyond the box: what the network says of it is about its edge.
    north, east = (min(max(output, -1.0), 1.0) for output in outputs[:2])
    latitude = min(max(frame.latitude + north * frame.height, -90.0), 90.0)
    return latitude, (frame.longitude + east * frame.width) % 360.0


def _direction_targets(topic: Topic, fact: Fact, frame: Frame) -> tuple[float, ...]:
    if fact.value == CALM:
        return 0.0, 0.0, 1.0
    degrees = 45.0 * OCTANTS.index(fact.value) if isinstance(fact.value, str) else float(fact.value)  # type: ignore[arg-type]
    return math.sin(math.radians(degrees)), math.cos(math.radians(degrees)), 0.0


def _direction_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    calm = targets[:, 2]
    distance = (outputs[:, :2] - targets[:, :2]).square().sum(dim=1)
    known = functional.binary_cross_entropy_with_logits(outputs[:, 2], calm, reduction="none")
    return known + (1 - calm) * distance


def _direction_value(topic: Topic, outputs: Sequence[float], frame: Frame) -> Value:
    return CALM if outputs[2] > 0 else math.degrees(math.atan2(outputs[0], outputs[1])) % 360.0


def _class_targets(topic: Topic, fact: Fact, frame: Frame) -> tuple[float, ...]:
    return (float(topic.values.index(str(fact.value))),)


def _class_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets[:, 0].long(), reduction="none")


def _class_value(topic: Topic, outputs: Sequence[float], frame: Frame) -> Value:
    return topic.values[int(np.argmax(outputs[: len(topic.values)]))]


FORMS: dict[Form, FormOfFact] = {
    "number": FormOfFact(lambda topic: 1, _number_targets, _number_loss, _number_value),
    "position": FormOfFact(lambda topic: 2, _position_targets, _position_loss, _position_value),
    "direction": FormOfFact(lambda topic: 3, _direction_targets, _direction_loss, _direction_value),
    "class": FormOfFact(lambda topic: len(topic.values), _class_targets, _class_loss, _class_value),
}
