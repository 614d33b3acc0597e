"""The table: rounding, tolerances, and facts as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from climafuse.errors import PairsError, UsageError
from climafuse.facts.kinds import (
    FACT_KINDS,
    OTHER_NAMES,
    SPOKEN_VARIABLES,
    Fact,
    agrees,
    error,
    name_of,
    select_kinds,
    spoken,
)
from climafuse.facts.unseen import UNSEEN_NAMES


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        (Fact("mean", "t2m", -0.4), 0.0),
        (Fact("mean", "t2m", -12.4), -12.0),
        (Fact("mean", "msl", 1013.25), 1013.0),
        (Fact("mean", "tp", 0.26), 0.3),
        (Fact("direction", "wd10", 337.4), "northwest"),
        (Fact("direction", "wd10", 337.6), "north"),
        (Fact("direction", "wd10", 359.9), "north"),
        (Fact("direction", "wd10", "calm"), "calm"),
        (Fact("maximum_position", "t2m", (-0.4, 359.7), cell=(1.0, 1.0)), (0.0, 0.0)),
        (Fact("maximum_position", "t2m", (42.25, 342.75), cell=(0.5, 0.625)), (42.2, 342.8)),
        (Fact("maximum_position", "t2m", (1.875, 187.5), cell=(3.75, 3.75)), (2.0, 188.0)),
        (Fact("nino34", "sst", 2.847), 2.8),
    ],
)
def test_spoken_rounds_as_the_table_says(fact: Fact, value: object) -> None:
    assert spoken(fact).value == value
    assert str(spoken(fact).value) == str(value)  # no "-0.0"
    assert spoken(spoken(fact)) == spoken(fact)


@pytest.mark.parametrize(
    ("kind", "variable", "stated", "exact", "counts"),
    [
        ("mean", "t2m", 9.0, 8.0, True),  # 1 K
        ("mean", "t2m", 9.0, 7.99, False),
        ("mean", "msl", 1012.0, 1013.0, True),  # 1 hPa
        ("mean", "msl", 1012.0, 1013.01, False),
        ("mean", "ws10", 7.0, 6.0, True),  # 1 m/s
        ("mean", "ws10", 7.0, 5.99, False),
        ("mean", "tp", 0.1, 0.0, True),  # 0.1 mm, or
        ("mean", "tp", 0.2, 0.0, False),
        ("mean", "tp", 7.5, 10.0, True),  # 25 % of the exact value
        ("mean", "tp", 7.4, 10.0, False),
        ("direction", "wd10", "west", 270 - 27.5, True),  # half an octant and 5 degrees
        ("direction", "wd10", "west", 270 - 27.6, False),
        ("direction", "wd10", "north", 27.4, True),  # across 360
        ("direction", "wd10", "north", 332.6, True),
        ("direction", "wd10", "north", 332.4, False),
        ("direction", "wd10", "calm", 332.4, False),
        ("direction", "wd10", "north", "calm", False),
        ("direction", "wd10", "calm", "calm", True),
        ("tendency", "t2m", "rising", "rising", True),
        ("tendency", "t2m", "rising", "steady", False),
        ("nino34", "sst", 2.8, 2.51, True),
    ],
)
def test_tolerances(kind: str, variable: str, stated: object, exact: object, counts: bool) -> None:
    assert agrees(Fact(kind, variable, stated), Fact(kind, variable, exact)) is counts


@pytest.mark.parametrize(
    ("stated", "exact", "cell", "counts"),
    [
        ((42.0, 343.0), (41.0, 344.0), (1.0, 1.0), True),
        ((42.0, 343.0), (40.9, 343.0), (1.0, 1.0), False),
        ((42.0, 343.0), (42.0, 341.9), (1.0, 1.0), False),
        ((10.0, 359.0), (10.0, 1.0), (2.0, 2.0), True),  # across Greenwich
        ((10.0, 0.0), (10.0, 357.0), (2.0, 2.0), False),
        ((42.0, 343.0), (42.0, 344.0), (0.25, 0.25), False),  # the cell is that of the exact fact
    ],
)
def test_positions_count_within_one_cell(stated: tuple, exact: tuple, cell: tuple, counts: bool) -> None:
    reference = Fact("maximum_position", "t2m", exact, cell=cell)
    assert agrees(Fact("maximum_position", "t2m", stated), reference) is counts


numbers = st.floats(-80, 60, allow_nan=False)


@given(numbers, st.floats(0, 360, exclude_max=True), st.floats(-90, 90), st.floats(0.04, 6))
def test_every_fact_agrees_with_itself_spoken(
    number: float, angle: float, latitude: float, size: float
) -> None:
    for kind, entry in FACT_KINDS.items():
        for variable in entry.rules:
            value = {"number": number, "direction": angle, "position": (latitude, angle)}.get(entry.form)
            for each in [value] if value is not None else entry.values:
                fact = Fact(kind, variable, each, cell=(size, size) if entry.form == "position" else None)
                assert agrees(spoken(fact), fact)


def test_facts_about_different_things_never_agree() -> None:
    north_south, west_east = (("axis", "north-south"),), (("axis", "west-east"),)
    assert not agrees(Fact("mean", "t2m", 8.0), Fact("maximum", "t2m", 8.0))
    assert not agrees(Fact("mean", "t2m", 8.0), Fact("mean", "sst", 8.0))
    assert not agrees(
        Fact("comparison", "t2m", "equal", north_south), Fact("comparison", "t2m", "equal", west_east)
    )


def test_errors_are_physical() -> None:
    assert error(Fact("mean", "t2m", 9.0), Fact("mean", "t2m", 7.5)) == 1.5
    assert error(Fact("direction", "wd10", "north"), Fact("direction", "wd10", 350.0)) == 10.0
    assert error(Fact("direction", "wd10", "calm"), Fact("direction", "wd10", 350.0)) is None
    assert error(Fact("tendency", "t2m", "rising"), Fact("tendency", "t2m", "rising")) is None
    # One degree of a great circle of 6371 km: 2 pi 6371 / 360 = 111.19 km; at 60 degrees north, half of it.
    here = Fact("maximum_position", "t2m", (0.0, 359.5))
    assert error(here, Fact("maximum_position", "t2m", (0.0, 0.5))) == pytest.approx(111.19, abs=0.01)
    there = Fact("maximum_position", "t2m", (60.0, 0.0))
    assert error(there, Fact("maximum_position", "t2m", (60.0, 1.0))) == pytest.approx(55.6, abs=0.01)


def test_names_tell_variables_apart() -> None:
    names = [name_of(variable) for variable in (*SPOKEN_VARIABLES, *OTHER_NAMES, *UNSEEN_NAMES)]
    assert len(set(names)) == len(names)
    with pytest.raises(UsageError, match="register_variable"):
        name_of("w500")


def test_choices_of_kinds() -> None:
    assert select_kinds(["mean/t2m", "direction"]) == {("mean", "t2m"), ("direction", "wd10")}
    assert ("mean", "sst_anomaly") not in select_kinds(["mean"])
    assert ("minimum", "tp") not in select_kinds(None)
    for unknown in ("means", "mean/wd10"):
        with pytest.raises(UsageError, match=unknown):
            select_kinds([unknown])


@pytest.mark.parametrize(
    "fact",
    [
        Fact("mean", "t2m", 8.25),
        Fact("direction", "wd10", "calm"),
        Fact("maximum_position", "t2m", (42.5, 343.125), cell=(0.5, 0.625)),
        Fact("comparison", "ws10", "equal", (("axis", "west-east"),)),
    ],
)
def test_facts_survive_json(fact: Fact) -> None:
    copy = Fact.from_dict(json.loads(json.dumps(fact.to_dict())))
    assert copy == fact
    assert copy.cell == fact.cell
    assert hash(copy) == hash(fact)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "mean", "variable": "t2m"},
        {"kind": "mean", "variable": "t2m", "value": None},
        {"kind": "mean", "variable": "t2m", "value": True},
        {"kind": "mean", "variable": "t2m", "value": float("nan")},
        {"kind": "mean", "variable": "t2m", "value": [1, 2, 3]},
        {"kind": 3, "variable": "t2m", "value": 1.0},
        {"kind": "mean", "variable": "t2m", "value": 1.0, "qualifiers": "axis"},
        {"kind": "mean", "variable": "t2m", "value": {"a": 1}},
    ],
)
def test_what_is_no_fact_is_refused(data: dict) -> None:
    with pytest.raises(PairsError, match="to_dict"):
        Fact.from_dict(data)
