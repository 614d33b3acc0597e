"""Facts as numbers and back. Oracle: what the tables say of each kind, and hand arithmetic."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from climafuse.data.window import Box, Window
from climafuse.errors import CheckpointError
from climafuse.evaluation.targets import FORMS, NUM_TARGETS, Frame, Topic, topics_of
from climafuse.facts import FACT_KINDS, Fact, agrees, extract, spoken
from tests.evaluation.stores import random_store

GREENWICH = Window(
    np.zeros((1, 1, 4, 4), np.float32),
    ("t2m",),
    np.array(["2026-03-01T00:00:00"], "datetime64[s]"),
    np.array([50.0, 51.0, 52.0, 53.0]),
    np.array([358.0, 359.0, 0.0, 1.0]),
)


def _perfect(topic: Topic, targets: tuple[float, ...]) -> list[float]:
    """Outputs that the loss wants."""
    if topic.form == "class":
        return [10.0 if number == targets[0] else -10.0 for number in range(len(topic.values))]
    if topic.form == "direction":
        return [targets[0], targets[1], 10.0 if targets[2] else -10.0]
    return list(targets)


def test_every_form_of_fact_has_its_row():
    assert set(FORMS) == {kind.form for kind in FACT_KINDS.values()}


def test_every_fact_of_random_weather_comes_back_as_it_is_spoken():
    store = random_store()
    windows = [store.window(step, Box(4.5, 26, 6, 7), 2) for step in (1, 2, 3, 4, 5)]
    facts = [(window, fact) for window in windows for fact in extract(window)]
    topics = {topic.key: topic for topic in topics_of((fact.key, fact) for _, fact in facts)}
    assert len(topics) > 40
    for window, fact in facts:
        topic, frame = topics[fact.key], Frame.of(window)
        targets = topic.targets(fact, frame)
        assert len(targets) == NUM_TARGETS
        outputs = _perfect(topic, targets)
        back = topic.fact(outputs, frame)
        assert agrees(back, fact)
        assert back == spoken(fact)
        # The loss is least there, and larger for the fact of another window.
        form = FORMS[topic.form]
        loss = form.loss(torch.tensor([outputs]), torch.tensor([targets]))
        assert loss.item() == pytest.approx(0, abs=1e-3)
        others = [other for _, other in facts if other.key == fact.key and not agrees(spoken(other), fact)]
        for other in others[:2]:
            wrong = torch.tensor([_perfect(topic, topic.targets(other, frame))])
            assert form.loss(wrong, torch.tensor([targets])).item() > 0.005


def test_positions_are_told_in_halves_of_the_box():
    frame = Frame.of(GREENWICH)
    # Rows 50 to 53 and columns -2 to 1, edges half a cell beyond: center 51.5 and -0.5, halves 2.
    assert (frame.latitude, frame.longitude % 360, frame.height, frame.width) == (51.5, 359.5, 2.0, 2.0)
    topic = Topic("maximum_position", "t2m")
    targets = topic.targets(Fact("maximum_position", "t2m", (53.0, 1.0), (), (1.0, 1.0)), frame)
    assert targets == pytest.approx((0.75, 0.75, 0.5, 0.5))
    assert topic.fact([0.75, -0.25], frame).value == (53.0, 359.0)
    assert topic.fact([7.0, -7.0], frame).value == (54.0, 358.0)  # held at the edge: 53.5 and 357.5, rounded


def test_directions():
    frame, topic = Frame.of(GREENWICH), Topic("direction", "wd10", (), FACT_KINDS["direction"].values)
    east = Fact("direction", "wd10", 90.0)
    assert topic.targets(east, frame) == pytest.approx((1.0, 0.0, 0.0, 0.0), abs=1e-12)
    assert topic.targets(spoken(east), frame) == pytest.approx((1.0, 0.0, 0.0, 0.0), abs=1e-12)
    assert topic.fact([-3.0, -3.0, -1.0], frame).value == "southwest"
    assert topic.fact([-3.0, -3.0, 1.0], frame).value == "calm"
    # Where it is calm, any vector will do.
    calm = torch.tensor([topic.targets(Fact("direction", "wd10", "calm"), frame)])
    one, other = (FORMS["direction"].loss(torch.tensor([[x, 0.0, 2.0]]), calm).item() for x in (0.0, 5.0))
    assert one == other == pytest.approx(math.log(1 + math.exp(-2)))


def test_numbers_are_told_in_spreads_around_their_median():
    facts = [Fact("mean", "t2m", value) for value in (0.0, 10.0, 11.0, 50.0, 4.0)]
    (topic,) = topics_of((fact.key, fact) for fact in facts)
    spread = float(np.std([0, 10, 11, 50, 4]))
    assert (topic.center, topic.spread) == (10.0, pytest.approx(spread))
    frame = Frame.of(GREENWICH)
    assert topic.targets(facts[3], frame)[:2] == pytest.approx((40 / spread, 1 / spread))  # tolerance 1 K
    assert topic.fact([0.5], frame).value == round(10 + spread / 2)
    # 2 K off, tolerance 1 K: (2 - 1/2) K. 0.2 K off: 0.2² / 2 K.
    target = torch.tensor([topic.targets(facts[0], frame)] * 2)
    outputs = torch.tensor([[(2.0 - 10) / spread], [(0.2 - 10) / spread]])
    assert FORMS["number"].loss(outputs, target).tolist() == pytest.approx(
        [1.5 / spread, 0.02 / spread], 1e-3
    )
    # Of precipitation a quarter of it counts, where that is more than 0.1 mm.
    wet = [Fact("mean", "tp", value) for value in (0.1, 8.0)]
    (topic,) = topics_of((fact.key, fact) for fact in wet)
    graces = [topic.targets(fact, frame)[1] * topic.spread for fact in wet]
    assert graces == pytest.approx([0.1, 2.0])


def test_an_absence_tells_no_value():
    absent = (("mean", "t2m", ()), Fact("absent", "t2m", "absent"))
    assert topics_of([absent]) == ()
    (topic,) = topics_of([absent, (("mean", "t2m", ()), Fact("mean", "t2m", 3.0))])
    assert topic.center == 3.0


def test_topics_survive_json():
    topic = Topic("event", "t2m", (("event", "heat"),), ("yes", "no"), 0.1, 2.5)
    assert Topic.from_dict(json.loads(json.dumps(topic.to_dict()))) == topic
    for change in ({"kind": "colour"}, {"variable": "x"}, {"spread": 0.0}, {"values": 3}):
        with pytest.raises(CheckpointError):
            Topic.from_dict(json.loads(json.dumps(topic.to_dict())) | change)
