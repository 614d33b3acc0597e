"""Views: whose values are shown, at which place and time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.data.window import Box
from climafuse.evaluation import Question, remember, swap_values
from climafuse.evaluation.views import make_views
from tests.evaluation.stores import make_store, random_store
from tests.facts.windows import KELVIN, window

BOX = Box(2.5, 22.5, 5, 5)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([(1, 2, 2), (1, 2, 3), (2, 2, 2)]), min_size=1, max_size=12), st.integers(0, 99)
)
def test_swapping_gives_everyone_the_values_of_another_of_its_shape(shapes, seed):
    windows = [
        window(
            {"t2m": np.full(shape, number)},
            number + np.arange(shape[1]),
            np.arange(shape[2]),
            [f"2026-03-{1 + number:02}T0{t}:00" for t in range(shape[0])],
        )
        for number, shape in enumerate(shapes)
    ]
    swapped, donor = swap_values(windows, seed=seed)
    alone = {shape for shape, count in Counter(shapes).items() if count == 1}
    for number, (before, after, source) in enumerate(zip(windows, swapped, donor, strict=True)):
        assert after.variables == before.variables
        for name in ("time", "latitude", "longitude"):
            assert np.array_equal(getattr(after, name), getattr(before, name))
        if shapes[number] in alone:
            assert source is None
            assert after is before
        else:
            assert source != number
            assert shapes[source] == shapes[number]
            assert (after.fields == source).all()
    given_away = [source for source in donor if source is not None]
    assert len(set(given_away)) == len(given_away)  # nobody's values are shown twice


def test_the_swap_depends_on_the_seed_only():
    windows = [window({"t2m": np.full((2, 2), n)}, [2 * n, 2 * n + 1], [0, 1]) for n in range(8)]
    assert swap_values(windows, seed=3)[1] == swap_values(windows, seed=3)[1]
    assert len({tuple(swap_values(windows, seed=seed)[1]) for seed in range(5)}) > 1


@pytest.mark.parametrize("seed", range(8))
def test_nobody_is_given_its_own_values_or_those_of_a_neighbor(seed):
    """Three windows of one hour that overlap, one of them twice, and two elsewhere or at another time."""
    noon, evening = "2026-03-25T12:00", "2026-03-25T18:00"
    windows = [
        window({"t2m": np.full((2, 2), n)}, [south, south + 1], [359, 0], [time])
        for n, (south, time) in enumerate([(0, noon), (0, noon), (1, noon), (2, noon), (0, evening)])
    ]
    apart = {0: {3, 4}, 1: {3, 4}, 2: {4}, 3: {0, 1, 4}, 4: {0, 1, 2, 3}}
    swapped, donor = swap_values(windows, seed=seed)
    for number, (source, after) in enumerate(zip(donor, swapped, strict=True)):
        assert source in apart[number]
        assert (after.fields == source).all()
    assert swap_values(windows[:3], seed=seed)[1] == [None, None, None]


def views_of(store, windows, steps=None, seed=0):
    questions = [Question(number, "?", ("mean", "t2m", ())) for number in range(len(windows))]
    memories = remember(store, windows, questions, history=len(windows[0].time))
    return make_views(windows, steps, store, memories, seed=seed)


def test_only_values_change():
    store = random_store()
    windows = [store.window(step, BOX, 2) for step in (8, 11)]
    for name, view in views_of(store, windows, steps=[8, 11]).items():
        for before, after in zip(windows, view, strict=True):
            assert after.variables == before.variables
            for key in ("time", "latitude", "longitude"):
                assert np.array_equal(getattr(after, key), getattr(before, key))
            assert np.array_equal(after.fields, before.fields) == (name == "true"), name


def test_what_each_view_shows():
    fields = np.broadcast_to((KELVIN + np.arange(12.0))[:, None, None], (12, 10, 12)).copy()
    fields[:, 0, 0] += 1  # an even field could not be normalized
    store = make_store({"t2m": fields})
    windows = [store.window(step, BOX, 1) for step in (7, 10)]
    views = {
        name: [w.fields[0, 0, 1, 1] - KELVIN for w in view]
        for name, view in views_of(store, windows, steps=[7, 8, 10]).items()
    }
    np.testing.assert_allclose(views["true"], [7, 10], atol=1e-4)
    np.testing.assert_allclose(views["swapped"], [10, 7], atol=1e-4)
    np.testing.assert_allclose(views["mean_field"], [2.5, 2.5], atol=1e-4)  # of the training days 0 to 5
    assert np.isnan(views["blank"]).all()
    seen = [
        [w.fields[0, 0, 1, 1] - KELVIN for w in views_of(store, windows, [7, 8, 10], seed)["other_time"]]
        for seed in range(20)
    ]
    assert {round(float(pair[0])) for pair in seen} == {8, 10}
    assert {round(float(pair[1])) for pair in seen} == {7, 8}


def test_a_view_that_cannot_be_made_shows_nothing():
    store = random_store()
    windows = [store.window(11, BOX, 2), store.window(11, Box(5, 28, 7, 5), 2)]
    views = views_of(store, windows, steps=[11])
    assert views["swapped"] == [None, None]  # of two shapes
    assert views["other_time"] == [None, None]  # there is no other
    assert views_of(store, windows)["other_time"] == [None, None]
    nobody = make_views(windows, None, store, [None, None], seed=0)
    assert nobody["mean_field"] == [None, None]
