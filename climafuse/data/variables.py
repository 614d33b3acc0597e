"""Canonical variables: one name, one unit, one meaning each.

Everything here is data. What products call these variables stands in ``products``, one file each; a new unit is
a new spelling in ``QUANTITIES``; a derived variable is an entry with a function. Nothing is matched by likeness:
a name, a unit or a cell method that the tables do not hold is refused.

*Cell methods* say what a value stands for: the state at a time (``point``), the ``mean`` over an interval, or
the ``sum`` over it. Precipitation exists twice for that reason: ERA5's ``tp`` is meters of water that fell
during the hour that ends at the time stamp, MERRA-2's ``PRECTOT`` (``tprate``) is a mean flux. A state such
as ``t2m`` may come as an instant (ERA5) or as an hourly mean (MERRA-2's ``tavg`` collections); it keeps its
name, and the attribute ``cell_methods`` says which.

Reference: CF standard-name table v93; ERA5 documentation (ECMWF), table 1 and "Conversion table for
accumulated variables"; MERRA-2 file specification (Bosilovich et al. 2016, GMAO Office Note 9).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import numpy as np

from climafuse.data.products import Conversion, get_product
from climafuse.errors import CanonicalizationError, ConfigurationError, VariableNotFoundError
from climafuse.registry import PRODUCTS


@dataclass(frozen=True)
class Quantity:
    """A physical quantity: its SI unit and the spellings of every unit that is understood.

    Args:
        units: The SI unit in UDUNITS spelling.
        possible: Smallest and largest value in SI units that a field can have. Far wider than any weather; narrow
            enough that a code for missing values that no attribute declares lies outside: -999 and -9999 in any of
            the units, -99.9 where no weather comes near it (in °C and m/s it does). Packing, spectral models and
            interpolation make what cannot be negative slightly so.
        spellings: Unit as written in files (after ``_plain``) -> conversion to the SI unit.
    """

    units: str
    possible: tuple[float, float]
    spellings: Mapping[str, Conversion]


_SAME: Conversion = (1.0, 0.0)
_KELVIN = dict.fromkeys(("K", "kelvin", "Kelvin", "kelvins", "Kelvins", "degrees_kelvin"), _SAME)
_CELSIUS = ("degC", "degree_C", "degrees_C", "deg_C", "deg C", "degree C", "degrees C", "degree_Celsius",
            "degrees_Celsius", "degree_celsius", "degrees_celsius", "degree Celsius", "degrees Celsius",
            "degrees celsius", "Celsius", "celsius", "C", "°C")  # fmt: skip
_FAHRENHEIT = ("degF", "degrees_F", "degree_F", "fahrenheit", "Fahrenheit", "°F")
_PERCENT = dict.fromkeys(("%", "percent"), (0.01, 0.0))
_ONE = dict.fromkeys(("1", "0-1", "fraction"), _SAME)

QUANTITIES: dict[str, Quantity] = {
    "temperature": Quantity("K", (-50, 2000), {
        **_KELVIN,
        **dict.fromkeys(_CELSIUS, (1.0, 273.15)),
        **dict.fromkeys(_FAHRENHEIT, (5 / 9, 459.67 * 5 / 9)),
    }),
    # A difference of temperatures has no zero point: 1 degC of anomaly is 1 K, not 274.15 K.
    "temperature_difference": Quantity("K", (-90, 90), {
        **_KELVIN,
        **dict.fromkeys(_CELSIUS, _SAME),
        **dict.fromkeys(_FAHRENHEIT, (5 / 9, 0.0)),
    }),
    "pressure": Quantity("Pa", (-50, 3e5), {
        **dict.fromkeys(("Pa", "pascal", "Pascal", "pascals", "N m-2"), _SAME),
        **dict.fromkeys(("hPa", "mbar", "mb", "millibar", "millibars"), (100.0, 0.0)),
        "kPa": (1000.0, 0.0),
    }),
    "speed": Quantity("m s-1", (-250, 250), {
        **dict.fromkeys(("m s-1", "m/s", "m/sec", "meter second-1", "meters per second"), _SAME),
        **dict.fromkeys(("km h-1", "km/h", "km hr-1"), (1 / 3.6, 0.0)),
        **dict.fromkeys(("knot", "knots", "kt"), (1852 / 3600, 0.0)),
    }),
    # Depth of liquid water; 1 kg m-2 of water is 1 mm by the definition of the liquid water equivalent.
    "water_depth": Quantity("m", (-0.05, 10), {
        **dict.fromkeys(("m", "meter", "metre", "meters", "metres"), _SAME),
        **dict.fromkeys(("mm", "kg m-2", "kg/m2"), (1e-3, 0.0)),
        "cm": (1e-2, 0.0),
    }),
    "water_flux": Quantity("kg m-2 s-1", (-0.001, 1), {
        **dict.fromkeys(("kg m-2 s-1", "kg/m2/s", "kg/(m2 s)", "mm s-1", "mm/s"), _SAME),
        **dict.fromkeys(("mm h-1", "mm/h", "mm hr-1", "mm/hr", "mm hour-1"), (1 / 3600, 0.0)),
        **dict.fromkeys(("mm d-1", "mm day-1", "mm/day", "mm/d", "kg m-2 d-1"), (1 / 86400, 0.0)),
    }),
    "water_mass": Quantity("kg m-2", (-50, 5000), dict.fromkeys(("kg m-2", "kg/m2", "mm"), _SAME)),
    "specific_humidity": Quantity("kg kg-1", (-0.05, 2), {
        **dict.fromkeys(("kg kg-1", "kg/kg", "1"), _SAME),
        **dict.fromkeys(("g kg-1", "g/kg"), (1e-3, 0.0)),
    }),
    "fraction": Quantity("1", (-0.5, 9), {**_ONE, **_PERCENT}),
    "geopotential": Quantity("m2 s-2", (-9900, 1e7), dict.fromkeys(("m2 s-2", "m2/s2", "J kg-1"), _SAME)),
    "height": Quantity("m", (-990, 1e6), dict.fromkeys(("m", "meter", "metre", "meters", "metres"), _SAME)),
    "pressure_tendency": Quantity("Pa s-1", (-25, 25), {
        **dict.fromkeys(("Pa s-1", "Pa/s"), _SAME),
        **dict.fromkeys(("hPa h-1", "hPa/h"), (100 / 3600, 0.0)),
    }),
}  # fmt: skip


@dataclass(frozen=True)
class Derivation:
    """How a derived variable follows from others, cell by cell.

    Args:
        inputs: Canonical names, in the order of the function's arguments.
        function: Numpy arrays in SI units -> numpy array in SI units.
    """

    inputs: tuple[str, ...]
    function: Callable[..., np.ndarray]


@dataclass(frozen=True)
class Variable:
    """A canonical variable.

    Args:
        name: Short name, that of ERA5 where ERA5 has one.
        long_name: For people.
        standard_name: CF standard name.
        quantity: Key of ``QUANTITIES``; gives the SI unit.
        cell_method: "point", "mean" or "sum".
        by_standard_name: Whether the standard name alone identifies it. Not where a height or more is needed:
            ``air_temperature`` may be of any height.
        on_levels: Whether it has a value on every pressure level.
        static: Whether it is the same at all times; then it may come without any.
        level: Pressure in hPa, for a channel (one level of a variable on levels).
        parent: The variable on levels that a channel is a level of.
        synonyms: Other standard names that files give it: CF's aliases, names that say more, and ecCodes' own choice.
        above_ground: Height in meters, where that is part of what it is.
        anomaly: Whether it is a departure from a mean over some times, and can be measured against another (`rebase`).
        derive: How it follows from other variables; None for variables that are only read.
    """

    name: str
    long_name: str
    standard_name: str
    quantity: str
    cell_method: str = "point"
    by_standard_name: bool = True
    on_levels: bool = False
    static: bool = False
    level: float | None = None
    parent: str | None = None
    synonyms: tuple[str, ...] = ()
    above_ground: float | None = None
    anomaly: bool = False
    derive: Derivation | None = field(default=None, compare=False)

    @property
    def units(self) -> str:
        """SI unit."""
        return QUANTITIES[self.quantity].units

    @property
    def attributes(self) -> dict[str, str]:
        """CF attributes of a canonical field of this variable."""
        attributes = {"long_name": self.long_name, "standard_name": self.standard_name, "units": self.units}
        if self.quantity == "temperature_difference":
            attributes["units_metadata"] = "temperature: difference"
        return attributes | {"cell_methods": f"time: {self.cell_method}"}


_SINGLE_LEVEL = (
    Variable("t2m", "2 meter temperature", "air_temperature", "temperature", by_standard_name=False,
             above_ground=2),
    Variable("d2m", "2 meter dew point temperature", "dew_point_temperature", "temperature",
             by_standard_name=False, above_ground=2),
    Variable("q2m", "2 meter specific humidity", "specific_humidity", "specific_humidity",
             by_standard_name=False, above_ground=2),
    Variable("skt", "skin temperature", "surface_temperature", "temperature"),
    Variable("u10", "10 meter eastward wind", "eastward_wind", "speed", by_standard_name=False, above_ground=10),
    Variable("v10", "10 meter northward wind", "northward_wind", "speed", by_standard_name=False,
             above_ground=10),
    Variable("ws10", "10 meter wind speed", "wind_speed", "speed", by_standard_name=False, above_ground=10,
             derive=Derivation(("u10", "v10"), np.hypot)),
    Variable("msl", "mean sea level pressure", "air_pressure_at_mean_sea_level", "pressure",
             synonyms=("air_pressure_at_sea_level",)),
    Variable("sp", "surface pressure", "surface_air_pressure", "pressure"),
    Variable("tp", "total precipitation", "lwe_thickness_of_precipitation_amount", "water_depth", "sum",
             synonyms=("precipitation_amount",)),
    Variable("tprate", "mean total precipitation rate", "precipitation_flux", "water_flux", "mean",
             synonyms=("lwe_precipitation_rate",)),
    # MERRA-2 holds both what its model rained (PRECTOT) and what its land surface got, corrected by gauges.
    Variable("tprate_corrected", "mean total precipitation rate, corrected by observations",
             "precipitation_flux", "water_flux", "mean", by_standard_name=False,
             synonyms=("lwe_precipitation_rate",)),
    Variable("tcwv", "total column water vapor", "atmosphere_mass_content_of_water_vapor", "water_mass",
             synonyms=("atmosphere_water_vapor_content",
                       "lwe_thickness_of_atmosphere_mass_content_of_water_vapor")),
    Variable("tcc", "total cloud cover", "cloud_area_fraction", "fraction", by_standard_name=False),
    Variable("sst", "sea surface temperature", "sea_surface_temperature", "temperature",
             synonyms=("sea_surface_skin_temperature", "sea_surface_subskin_temperature",
                       "sea_surface_foundation_temperature")),
    # CF v93 has no name of its own for an anomaly of sea surface temperature; this one is the nearest.
    Variable("sst_anomaly", "sea surface temperature anomaly", "surface_temperature_anomaly",
             "temperature_difference", by_standard_name=False, synonyms=("sea_surface_temperature_anomaly",),
             anomaly=True),
    Variable("siconc", "sea ice concentration", "sea_ice_area_fraction", "fraction"),
    Variable("lsm", "land-sea mask", "land_area_fraction", "fraction", static=True, synonyms=("land_binary_mask",)),
    Variable("orog", "height of the surface", "surface_altitude", "height", static=True,
             synonyms=("geopotential_height",)),
    Variable("zs", "geopotential of the surface", "surface_geopotential", "geopotential", static=True,
             synonyms=("geopotential",)),
)  # fmt: skip

_ON_LEVELS = (
    Variable("t", "temperature", "air_temperature", "temperature"),
    Variable("u", "eastward wind", "eastward_wind", "speed"),
    Variable("v", "northward wind", "northward_wind", "speed"),
    Variable("w", "vertical pressure velocity", "lagrangian_tendency_of_air_pressure", "pressure_tendency",
             synonyms=("vertical_air_velocity_expressed_as_tendency_of_pressure",)),
    Variable("q", "specific humidity", "specific_humidity", "specific_humidity"),
    Variable("r", "relative humidity", "relative_humidity", "fraction"),
    Variable("z", "geopotential", "geopotential", "geopotential"),
    Variable("zg", "geopotential height", "geopotential_height", "height"),
)  # fmt: skip

# Levels of ERA5 and MERRA-2 from 50 hPa down. Higher up a channel's name would be that of a height in meters
# (u10), so those levels are reached through the level dimension only.
LEVELS = (50, 70, 100, 125, 150, 175, 200, 225, 250, 300, 350, 400, 450, 500, 550, 600, 650, 700, 725, 750,
          775, 800, 825, 850, 875, 900, 925, 950, 975, 1000)  # fmt: skip


def _channels() -> list[Variable]:
    return [
        replace(
            parent,
            name=f"{parent.name}{level}",
            long_name=f"{parent.long_name} at {level} hPa",
            by_standard_name=False,
            level=float(level),
            parent=parent.name,
        )
        for parent in _ON_LEVELS
        for level in LEVELS
    ]


VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (*_SINGLE_LEVEL, *(replace(v, on_levels=True) for v in _ON_LEVELS), *_channels())
}
"""Canonical name -> variable: on a single level, on levels, and channels of those such as ``t850``."""

# What a wrong unit of these most likely means.
_UNIT_NOTES = {
    "water_depth": " A rate is another variable: tprate.",
    "water_flux": " A depth of water is another variable: tp.",
    "geopotential": " A height in meters is another variable: zg.",
    "height": " A geopotential is another variable: z.",
}
_STANDARD_NAMES = {variable.standard_name for variable in VARIABLES.values()}

# What a file may say of a canonical cell method. The mean of a state over an hour is still that state (and
# labeled so); a sum is no mean, and a maximum is neither.
_ACCEPTED_METHODS = {"point": ("point", "mean"), "mean": ("mean",), "sum": ("sum",)}
# How GRIB-born files say it (ecCodes stepType; "avgua", "avgad" and the like are monthly means).
_GRIB_STEP_TYPES = {"instant": "point", "accum": "sum", "avg": "mean", "avgua": "mean", "avgad": "mean",
                    "avgas": "mean", "avgid": "mean", "max": "maximum", "min": "minimum"}  # fmt: skip


@dataclass(frozen=True)
class _Vocabulary:
    """What all registered products say, turned around for looking up."""

    names: Mapping[str, Mapping[str, str]]
    """Name in a file -> product -> canonical name."""
    units: Mapping[str, Mapping[str, Conversion]]
    """Quantity -> spelling -> conversion."""
    other_fields: Collection[str]
    """Names of fields that no canonical variable is."""
    no_standard_names: Collection[str]
    """What stands for a standard name that is not known."""


def _vocabulary() -> _Vocabulary:
    # A product may be registered at any time, but not replaced: their names say whether anything is new.
    return _vocabulary_of(tuple(PRODUCTS))


@lru_cache(maxsize=2)
def _vocabulary_of(products: tuple[str, ...]) -> _Vocabulary:
    names: dict[str, dict[str, str]] = {}
    units = {quantity: dict(entry.spellings) for quantity, entry in QUANTITIES.items()}
    other_fields = {name for key in products for name in get_product(key).other_fields}
    no_standard_names = {name for key in products for name in get_product(key).no_standard_names}
    for key in products:
        product = get_product(key)
        _refuse_unknown(key, {*product.spellings, *product.channels}, VARIABLES, "canonical variables")
        _refuse_unknown(key, product.units, QUANTITIES, "quantities")
        spellings = [(name, canonical) for canonical, own in product.spellings.items() for name in own]
        spellings += [
            (f"{prefix}{level}", f"{parent}{level}")
            for parent, prefixes in product.channels.items()
            for prefix in prefixes
            for level in LEVELS
        ]
        for name, canonical in spellings:
            if names.setdefault(name, {}).setdefault(key, canonical) != canonical:
                raise _bad_product(key, "one meaning of each name", f"{name!r} for two variables")
        for quantity, own_units in product.units.items():
            for spelling, conversion in own_units.items():
                if units[quantity].setdefault(_plain(spelling), conversion) != conversion:
                    raise _bad_product(key, "a unit that means one thing", f"{spelling!r} of {quantity}")
    return _Vocabulary(names, units, other_fields, no_standard_names)


def _refuse_unknown(product: str, given: Collection[str], known: Collection[str], what: str) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise _bad_product(product, what, f"{name!r}{f' (is {near[0]!r} meant?)' if near else ''}")


def _bad_product(product: str, expected: str, received: str) -> ConfigurationError:
    return ConfigurationError(
        f"product {product!r}", expected=expected, received=received, remedy="Correct its tables."
    )


def named_variable(name: str, products: Collection[str] = ()) -> Variable | None:
    """The canonical variable that a name stands for, by the tables alone.

    Args:
        name: Canonical name or that of a product.
        products: Registered names of the products that the file is of. What they say goes before all else.

    Returns:
        The variable, or None where no table holds the name.

    Raises:
        CanonicalizationError: Products give the name to different variables, and the file is of none of them.
    """
    spelled = _vocabulary().names.get(name, {})
    meanings = {spelled[key] for key in products if key in spelled} or ({name} & VARIABLES.keys())
    meanings = meanings or set(spelled.values())
    if len(meanings) > 1:
        said = ", ".join(f"{spelled[key]} in {get_product(key).title}" for key in sorted(spelled))
        raise CanonicalizationError(
            f"variable {name!r}",
            expected="a name that means one variable, or a file that is recognized as of one product",
            received=said,
            remedy="Rename the field to its canonical name.",
        )
    return VARIABLES[meanings.pop()] if meanings else None


def match_variable(
    name: str, attributes: Mapping[str, Any], *, has_level: bool = False, products: Collection[str] = ()
) -> Variable | None:
    """The canonical variable of a field as a file holds it, by name and else by CF standard name.

    Args:
        name: Name in the file.
        attributes: Its attributes.
        has_level: Whether the field lies on a pressure level or several.
        products: Registered names of the products that the file is of.

    Returns:
        The variable, or None where the table holds none.

    Raises:
        CanonicalizationError: Products give the name to different variables, and the file is of none of them.
    """
    variable = named_variable(name, products)
    if variable is not None:
        # T or z on no level is something else: ERA5's single-level z is the geopotential of the ground.
        return None if variable.on_levels and not has_level else variable
    if name in _vocabulary().other_fields:
        return None
    standard_name = attributes.get("standard_name")
    for candidate in VARIABLES.values():
        named = candidate.by_standard_name and candidate.standard_name == standard_name
        if named and candidate.on_levels == has_level:
            return candidate
    return None


def check_standard_name(
    variable: Variable, attributes: Mapping[str, Any], *, argument: str, products: Collection[str] = ()
) -> None:
    """Refuse a field whose name says one thing and whose standard name or unit of a difference says another.

    Args:
        variable: What the field is by its name.
        attributes: Its attributes.
        argument: How to name the field in an error.
        products: Registered names of the products that the file is of. Those with ``own_standard_names`` contradict a
            name only with the CF name of another variable of the table.

    Raises:
        CanonicalizationError: They contradict each other.
    """
    stated = attributes.get("standard_name")
    own = (variable.standard_name, *variable.synonyms)
    silent = stated is None or stated in _vocabulary().no_standard_names
    # A modifier after the name ("standard_error") makes it another quantity.
    others = any(get_product(key).own_standard_names for key in products) and (
        str(stated).partition(" ")[0] not in _STANDARD_NAMES
    )
    if not (silent or others or stated in own):
        raise CanonicalizationError(
            argument,
            expected=f"standard_name {variable.standard_name!r}, as the name means {variable.long_name}",
            received=f"standard_name {stated!r}",
            remedy="Correct the attribute (or delete it, if it is no CF name), or rename the variable to what it is.",
        )
    # CF 1.11, section 3.1.2: whether a temperature is one, or how far two lie apart.
    metadata = str(attributes.get("units_metadata", ""))
    wrong = "on_scale" if variable.quantity == "temperature_difference" else "difference"
    if metadata.partition(":")[2].strip() == wrong:
        raise CanonicalizationError(
            argument,
            expected=f"units_metadata of {variable.long_name}",
            received=f"units_metadata {metadata!r}",
            remedy="Correct the attribute, or rename the variable to what it is.",
        )


def check_height(variable: Variable, heights: Collection[float], *, argument: str) -> None:
    """Refuse a field near the ground whose file states another height than its name.

    Models have no level at 2 m or 10 m sharp, and say so: up to a fourth more or less is the same variable (the
    temperature of UKESM is that at 1.5 m).

    Args:
        variable: What the field is by its name.
        heights: Above the ground, in meters, as the file states them: none, one, or those of several fields.
        argument: How to name the field in an error.

    Raises:
        CanonicalizationError: They contradict each other.
    """
    expected = variable.above_ground
    if expected is not None and heights and not any(abs(h - expected) <= expected / 4 for h in heights):
        raise CanonicalizationError(
            argument,
            expected=f"{variable.long_name}, at {0.75 * expected:g} to {1.25 * expected:g} m above the ground",
            received=f"a height coordinate of {', '.join(f'{h:g}' for h in heights)} m",
            remedy="Rename the field to what it is, or correct or drop the height coordinate.",
        )


def find_variable(
    name: str, attributes: Mapping[str, Any] | None = None, *, products: Collection[str] = ()
) -> Variable:
    """The canonical variable that a name stands for.

    Args:
        name: Canonical name, or that of a product.
        attributes: Attributes of the field, for names that say nothing.
        products: Registered names of the products that the file in question is of.

    Returns:
        The variable.

    Raises:
        VariableNotFoundError: The tables hold no such variable.
        CanonicalizationError: Name and standard name contradict each other, or products the name.
    """
    attributes = attributes or {}
    variable = match_variable(name, attributes, has_level=True, products=products)
    variable = variable or match_variable(name, attributes, products=products)
    if variable is None:
        raise VariableNotFoundError(
            f"variable {name!r}",
            expected=f"one of {', '.join(known_names())}",
            received=repr(name),
            remedy="Use one of these names, or the name ERA5 or MERRA-2 gives to the same field.",
        )
    check_standard_name(variable, attributes, argument=f"variable {name!r}", products=products)
    return variable


def known_names() -> list[str]:
    """Canonical names for a message: channels in short form."""
    names = [variable.name for variable in VARIABLES.values() if variable.level is None]
    return [*names, "and one level of those on levels, as in t850"]


def unit_conversion(variable: Variable, units: object, *, argument: str) -> Conversion:
    """How to bring a field to SI units.

    Args:
        variable: What it is.
        units: Its ``units`` attribute; None where it has none.
        argument: How to name the field in an error.

    Returns:
        Scale and offset: SI value = scale · value + offset.

    Raises:
        CanonicalizationError: No unit, or none of this quantity.
    """
    spellings = _vocabulary().units[variable.quantity]
    conversion = None if units is None else spellings.get(_plain(str(units)))
    if conversion is None:
        raise CanonicalizationError(
            argument,
            expected=f"units of {variable.long_name}: {', '.join(spellings)}",
            received="no units attribute" if units is None else f"units {str(units)!r}",
            remedy=f"Correct the units attribute of the file.{_UNIT_NOTES.get(variable.quantity, '')}",
        )
    return conversion


def cell_methods(
    variable: Variable, attributes: Mapping[str, Any], *, argument: str, other_axes: Collection[str] = ()
) -> str:
    """The ``cell_methods`` attribute of a canonical field; checked against what the variable is.

    Args:
        variable: What the field is.
        attributes: Attributes of the field: ``cell_methods``, or ``GRIB_stepType``.
        argument: How to name the field in an error.
        other_axes: Names of its dimensions that are not time.

    Returns:
        The file's own words where it has them, with ``time`` for the file's name of it, else ``time: <method>``.

    Raises:
        CanonicalizationError: The field is a mean where the variable is a sum, or the like.
    """
    method = time_method(attributes, other_axes)
    if method is None:
        return variable.attributes["cell_methods"]
    if method not in _ACCEPTED_METHODS[variable.cell_method]:
        raise CanonicalizationError(
            argument,
            expected=f"cell method {' or '.join(_ACCEPTED_METHODS[variable.cell_method])} over time (as in "
            f"'time: {variable.cell_method}'), as {variable.name} is {variable.long_name} in {variable.units}",
            received=f"cell method {method}",
            remedy="Sums, means, extremes and instants are different variables: convert with the known "
            "interval, and name the result for what it is.",
        )
    entries = _cell_methods(attributes) or []
    if not any(_time_names(names, other_axes) for names, _, _ in entries):
        return f"time: {method}"
    return " ".join(
        " ".join("time:" if name in _time_names(names, other_axes) else f"{name}:" for name in names)
        + f" {how}{rest}"
        for names, how, rest in entries
    )


def time_method(attributes: Mapping[str, Any], other_axes: Collection[str] = ()) -> str | None:
    """What a file says a value stands for: "point", "mean", "sum" or another method; None if it is silent.

    Args:
        attributes: Attributes of the field: ``cell_methods``, or ``GRIB_stepType``.
        other_axes: Names of its dimensions that are not time.
    """
    entries = _cell_methods(attributes)
    if entries is None:
        return f"{attributes['cell_methods']!r}, which is not in CF's form"
    stated = {method for names, method, _ in entries if _time_names(names, other_axes)}
    if stated:
        return " and ".join(sorted(stated))
    step_type = attributes.get("GRIB_stepType")
    return None if step_type is None else _GRIB_STEP_TYPES.get(str(step_type), str(step_type))


# One entry of cell_methods by CF's section 7.3: "lat: lon: mean where land (comment)".
_CELL_METHOD = re.compile(
    r"\s*((?:[^\s:()]+\s*:\s*)+)(\w+)((?:\s+(?:where|over|within)\s+\w+)*(?:\s*\([^()]*(?:\([^()]*\)[^()]*)*\))?)(?=\s|$)"
)
# What methods may be over besides the dimensions of a field; every other name is taken for one of time.
_OTHER_AXES = {"area", "latitude", "longitude", "lat", "lon", "x", "y", "level", "lev", "plev", "depth", "height",
               "realization", "number", "member", "ensemble"}  # fmt: skip


def _cell_methods(attributes: Mapping[str, Any]) -> list[tuple[list[str], str, str]] | None:
    """Entries of ``cell_methods``: names of axes, method, all else; None if they cannot be read."""
    text = str(attributes.get("cell_methods", "")).strip()
    entries, end = [], 0
    while end < len(text):
        match = _CELL_METHOD.match(text, end)
        if match is None:
            return None
        entries.append(([name.strip() for name in match[1].split(":")[:-1]], match[2], match[3]))
        end = match.end()
    return entries


def _time_names(names: Collection[str], other_axes: Collection[str]) -> set[str]:
    return set(names) - _OTHER_AXES - set(other_axes)


def _plain(units: str) -> str:
    """One spelling for exponents and spaces: ``m s**-1`` and ``m  s^-1`` are ``m s-1``."""
    return " ".join(units.replace("**", "").replace("^", "").split())
