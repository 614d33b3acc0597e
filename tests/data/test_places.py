"""Places: coordinates as text, and names against well-known coordinates."""

from __future__ import annotations

import pytest

from climafuse.data.places import find_place
from climafuse.errors import PlaceError


@pytest.mark.parametrize(
    ("text", "latitude", "longitude"),
    [
        ("48.9,2.3", 48.9, 2.3),
        ("48.9, 2.3", 48.9, 2.3),
        ("-33.9 151.2", -33.9, 151.2),
        ("48.9N 2.3E", 48.9, 2.3),
        ("33.9°S, 70.5°W", -33.9, 289.5),
        ("0,-0.5", 0, 359.5),
        ("90,360", 90, 0),
    ],
)
def test_coordinates(text: str, latitude: float, longitude: float) -> None:
    place = find_place(text)
    assert (place.latitude, place.longitude) == pytest.approx((latitude, longitude))
    assert place.country == ""


def test_coordinates_are_spoken_with_hemispheres() -> None:
    assert str(find_place("-33.9,289.5")) == "33.9°S 70.5°W"


@pytest.mark.parametrize("text", ["91,0", "0,361", "0,-181", "-33.9S 70W"])
def test_coordinates_outside_the_globe(text: str) -> None:
    with pytest.raises(PlaceError):
        find_place(text)


@pytest.mark.parametrize("text", ["", "48.9", "48,9,2,3", "--", "Paris,", "nan,nan"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(PlaceError):
        find_place(text)


# Latitude and longitude as an atlas gives them, to the nearest half degree.
@pytest.mark.parametrize(
    ("text", "label", "latitude", "longitude"),
    [
        ("Paris", "Paris, FR", 49, 2.5),
        ("  pARIS ", "Paris, FR", 49, 2.5),
        ("Paris, US", "Paris, US", 33.5, 264.5),
        ("Paris, TX", "Paris, US", 33.5, 264.5),
        (
            "Rome",
            "Rome, IT",
            42,
            12.5,
        ),  # a list of other spellings gives Lomé as Rome too: smaller, so no matter
        ("Zurich", "Zürich, CH", 47.5, 8.5),
        ("MÜNCHEN", "Munich, DE", 48, 11.5),
        ("sao paulo", "São Paulo, BR", -23.5, 313.5),
        ("St Louis", "St. Louis, US", 38.5, 270),
        ("Bombay", "Mumbai, IN", 19, 73),
        ("巴黎", "Paris, FR", 49, 2.5),
        ("Valencia, Spain", "Valencia, ES", 39.5, 359.5),
        ("Birmingham, UK", "Birmingham, GB", 52.5, 358),
        ("Perth, AUS", "Perth, AU", -32, 116),
        ("Springfield, Illinois, USA", "Springfield, US", 39.8, 270.4),
    ],
)
def test_names(text: str, label: str, latitude: float, longitude: float) -> None:
    place = find_place(text)
    assert str(place) == label
    assert place.latitude == pytest.approx(latitude, abs=0.6)
    assert place.longitude == pytest.approx(longitude, abs=0.6)


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        ("Valencia", ["Valencia, VE (10.", "Valencia, ES (39."]),
        (
            "Odessa",
            ["Odesa, UA", "Odessa, TX, US"],
        ),  # the smaller has the very name, the larger a spelling of it
        ("Springfield", ["Springfield, MO, US", "Springfield, MA, US"]),
        ("Rome, US", ["Rome, GA, US", "Rome, NY, US"]),
    ],
)
def test_ambiguous_names_list_the_candidates(text: str, candidates: list[str]) -> None:
    with pytest.raises(PlaceError) as caught:
        find_place(text)
    for candidate in candidates:
        assert candidate in str(caught.value)


def test_candidates_of_an_ambiguous_name_can_be_used_as_they_are_listed() -> None:
    assert find_place("Odessa, TX, US").latitude == pytest.approx(31.8, abs=0.2)
    assert find_place("Odesa, UA").latitude == pytest.approx(46.5, abs=0.2)


@pytest.mark.parametrize("text", ["Nowhereville", "Paris, Japan"])
def test_unknown_names(text: str) -> None:
    with pytest.raises(PlaceError, match="at least 15,000 people"):
        find_place(text)


def test_box_around_a_place() -> None:
    box = find_place("60,5").box(10, 20)
    assert (box.south, box.north, box.west, box.east) == (55, 65, 355, 15)
