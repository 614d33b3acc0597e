"""Planted signals. Oracle: the definitions of the facts, in plain numpy, on the planted window and on the real one."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from climafuse.data.window import Window
from climafuse.evaluation.planting import SIGNALS, Signal, plant
from climafuse.facts import agrees, asked, parse

LATITUDE, LONGITUDE = 40.0 + np.arange(16), (350.0 + np.arange(16)) % 360
NAMES = ("t2m", "u10", "v10", "msl", "tp", "ws10")


def real(seed: int, *, names=NAMES, steps=2, height=16, width=16) -> Window:
    """Smooth weather: a gradient, a wave and some noise."""
    rng = np.random.default_rng(seed)
    north, east = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")

    def field(mean, gradient, noise):
        slope = gradient * (
            rng.normal() * north + rng.normal() * east + np.sin(3 * north + rng.uniform(0, 6))
        )
        return mean + slope + rng.normal(0, noise, (steps, height, width))

    u, v = field(3, 4, 0.5), field(-2, 4, 0.5)
    fields = {
        "t2m": field(283, 6, 0.5),
        "u10": u,
        "v10": v,
        "msl": field(101300, 800, 30),
        "tp": np.abs(field(0, 1e-3, 1e-4)),
        "ws10": np.hypot(u, v),
    }
    time = np.datetime64("2026-03-25T12:00:00") + np.arange(steps) * np.timedelta64(8, "h")
    stacked = np.stack([fields[name] for name in names], axis=1).astype(np.float32)
    return Window(stacked, names, time, LATITUDE[:height], LONGITUDE[:width])


WINDOWS = [real(seed) for seed in range(12)]
BY_SIGNAL = {signal.name: signal for signal in SIGNALS}
PLANTED = plant(WINDOWS, seed=3)


def of(prefix: str):
    found = [one for one in PLANTED if one.signal.startswith(prefix)]
    assert found
    return found


def test_every_signal_is_planted_in_most_windows():
    counts = Counter(one.signal for one in PLANTED)
    assert set(counts) == set(BY_SIGNAL)
    # A box across the middle decides no comparison of halves.
    assert all(n >= len(WINDOWS) - 1 or name.startswith("comparison") for name, n in counts.items()), counts
    assert all(n >= len(WINDOWS) // 4 for n in counts.values()), counts


@pytest.mark.parametrize("name", BY_SIGNAL)
def test_the_question_asks_for_the_fact_and_the_answer_states_it(name):
    for one in of(name):
        assert (one.fact.kind, one.fact.variable) == (BY_SIGNAL[name].kind, BY_SIGNAL[name].variable)
        assert asked(one.prompt) == one.fact.key
        (said,) = parse(one.answer, one.prompt)
        assert agrees(said, one.fact)
        assert one.box.sum() == 36
        assert np.isfinite(one.window.fields).all()


@pytest.mark.parametrize(("sign", "word"), [(1, "maximum"), (-1, "minimum")])
@pytest.mark.parametrize("variable", ["t2m", "msl"])
def test_an_extreme_lies_in_the_box_and_goes_beyond_the_rest_by_as_much_as_weather_does(sign, word, variable):
    unit = 1.0 if variable == "t2m" else 100.0
    for one in of(f"{word}/{variable}"):
        last = sign * one.window.field(variable)[-1].astype(float)
        assert 3 * unit <= last[one.box].max() - last[~one.box].max() <= 6.1 * unit
        spoken = sign * last.max() / unit - (273.15 if variable == "t2m" else 0)
        assert one.fact.value == pytest.approx(spoken, abs=1e-3)
    for one in of(f"{word}_position/{variable}"):
        row, column = np.unravel_index((sign * one.window.field(variable)[-1]).argmax(), one.box.shape)
        assert one.box[row, column]
        assert one.fact.value == (LATITUDE[row], LONGITUDE[column])


def test_a_threshold_is_crossed_in_the_box_and_nowhere_else():
    for one in of("event/t2m"):
        frost = one.window.field("t2m")[-1] < 273.15
        assert frost.any()
        assert not frost[~one.box].any()
        assert one.fact.value == "yes"
    for one in of("event/ws10"):
        u, v, speed = (one.window.field(name)[-1] for name in ("u10", "v10", "ws10"))
        np.testing.assert_allclose(speed, np.hypot(u, v), rtol=1e-5)
        assert (speed >= 10.8).any()
        assert not (speed[~one.box] >= 10.8).any()


@pytest.mark.parametrize("kind", ["change", "tendency"])
def test_only_the_box_changes_and_it_moves_the_mean(kind):
    for one in of(kind):
        name, unit = one.fact.variable, 1.0 if one.fact.variable == "t2m" else 100.0
        change = (one.window.field(name)[-1] - one.window.field(name)[0]).astype(float) / unit
        assert not change[~one.box].any()
        weight = np.cos(np.deg2rad(LATITUDE))[:, None] * np.ones(change.shape)
        mean = np.average(change, weights=weight)
        assert 1.5 <= abs(mean) <= 3.01
        assert one.fact.value == (
            pytest.approx(mean, abs=1e-3) if kind == "change" else "rising" if mean > 0 else "falling"
        )


def _contrast(field, upper):
    """Mean of some cells minus that of the others."""
    weight = np.cos(np.deg2rad(LATITUDE))[:, None] * np.ones(field.shape)
    first, second = (np.average(field[half], weights=weight[half]) for half in (upper, ~upper))
    return first - second


def test_halves_are_alike_but_for_the_box():
    north = np.broadcast_to((LATITUDE.mean() < LATITUDE)[:, None], (16, 16))
    east = np.broadcast_to(np.arange(16) >= 8, (16, 16))
    halves = {"north-south": (north, "north", "south"), "west-east": (east, "east", "west")}
    for one in of("comparison"):
        field = one.window.field(one.fact.variable)[-1].astype(float)
        upper, name, other = halves[one.fact.qualifier("axis")]
        contrast = _contrast(field, upper) / (1.0 if one.fact.variable == "t2m" else 100.0)
        assert abs(contrast) >= 1
        assert one.fact.value == (name if contrast > 0 else other)
        # The box is warmer than it was, so that the half wins that holds more of it.
        assert ((one.box & upper).sum() > (one.box & ~upper).sum()) == (contrast > 0)


def test_the_wind_of_the_box_is_that_of_the_window():
    for one in of("direction"):
        u, v = one.window.field("u10")[-1].astype(float), one.window.field("v10")[-1].astype(float)
        assert np.ptp(u[one.box]) < 1e-5
        toward = np.degrees(np.arctan2(u[one.box][0], v[one.box][0]))
        assert abs((one.fact.value - toward - 180 + 180) % 360 - 180) < 27.5
        weight = np.cos(np.deg2rad(LATITUDE))[:, None] * np.ones(u.shape)
        assert np.average(u[~one.box], weights=weight[~one.box]) == pytest.approx(0, abs=1e-4)


def test_a_function_of_seed_and_number_that_leaves_the_windows_alone():
    few = WINDOWS[:2]
    before = [window.fields.copy() for window in few]
    again, other = plant(few, seed=3), plant(few, seed=4)
    first = {one.signal: one for one in reversed(PLANTED)}
    extremes = [
        name for name in BY_SIGNAL if name.startswith(("maximum/", "minimum/"))
    ]  # planted in every window
    same = {one.signal: one for one in reversed(again)}
    assert all((same[name].window.fields == first[name].window.fields).all() for name in extremes)
    assert [one.prompt for one in plant(few, seed=3)] == [one.prompt for one in again]
    assert any((a.box != b.box).any() for a, b in zip(again, other, strict=False))
    for window, fields in zip(few, before, strict=True):
        np.testing.assert_array_equal(window.fields, fields)


def test_what_cannot_be_planted_is_left_out():
    steady = {one.signal for one in plant([real(0, steps=1)])}
    assert steady
    assert not {name for name in steady if name.startswith(("change", "tendency"))}
    calm = {one.signal for one in plant([real(0, names=("t2m", "msl"))])}
    assert {name.split("/")[1].split()[0] for name in calm} == {"t2m", "msl"}
    assert plant([real(0, height=2, width=16)]) == []
    hole = real(0)
    hole.fields[:, :, ::2, ::2] = np.nan
    assert plant([hole]) == []  # a box of six cells has one without a value, wherever it lies
    gone = dataclasses.replace(real(0), fields=np.full_like(real(0).fields, np.nan))
    assert plant([gone]) == []


def test_a_box_that_does_not_decide_is_not_counted():
    nothing = Signal("maximum", "t2m", lambda soil, name: None, ("t2m",))
    found = plant([real(seed) for seed in range(20)], signals=[nothing])
    for one in found:  # only where the real maximum happens to lie in the box, and clearly
        last = one.window.field("t2m")[-1]
        assert last[one.box].max() - last[~one.box].max() > 1
    assert len(found) < 20
