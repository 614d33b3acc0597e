"""How stored numbers stand for values: scale and offset, unsigned integers in disguise, missing values, limits.

The attributes speak of the numbers that the file holds. A dataset that xarray has decoded holds values instead, and
its ``encoding`` says what they were; limits, which xarray neither applies nor converts, still speak of the numbers.

Reference: NetCDF Users' Guide, appendix B ("Attribute Conventions"); CF conventions 1.11, sections 2.5.1 and 8.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from climafuse.errors import CanonicalizationError

_PACKED = ("scale_factor", "add_offset")


@dataclass(frozen=True)
class Packing:
    """How the numbers that a variable holds stand for its values.

    Args:
        scale: Value = scale · number + offset.
        offset: See ``scale``.
        numbers: Type of the numbers. Stored integers of another sign are these in disguise: NetCDF 3 has no
            unsigned ones, DAP no signed bytes.
        fills: Numbers that mean "missing".
        limits: Smallest and largest number that does not.
        doubtful: The limits as the file has them, if nobody can say of what they are limits; else empty.
    """

    scale: float
    offset: float
    numbers: np.dtype[Any]
    fills: tuple[Any, ...]
    limits: tuple[float, float]
    doubtful: str = ""


def packing_of(variable: xr.Variable, where: str) -> Packing:
    """How the numbers of a variable stand for its values.

    Args:
        variable: As stored, or decoded by xarray.
        where: File and variable, for errors.

    Returns:
        The packing; of a decoded variable, whose numbers are its values, only the limits are left.

    Raises:
        CanonicalizationError: An attribute is no number, or a scale or offset that nothing can be unpacked with.
    """
    decoded = _is_decoded(variable)
    told = variable.encoding if decoded else variable.attrs
    scale, offset = scale_and_offset(told, where)
    stored = np.dtype(variable.encoding.get("dtype", variable.dtype)) if decoded else variable.dtype
    sign = {"true": "u", "false": "i"}.get(str(told.get("_Unsigned", "")).lower(), stored.kind)
    numbers = np.dtype(f"{sign}{stored.itemsize}") if stored.kind in "iu" else stored
    limits, doubtful = _limits(variable.attrs, stored, numbers, (scale, offset), where)
    if not decoded:
        return Packing(
            scale, offset, numbers, _fills(variable.attrs, stored, numbers, where), limits, doubtful
        )
    # Between two numbers, as the values were rounded when they were unpacked.
    half = 0.5 if stored.kind in "iu" else 0.0
    unpacked = sorted(((limits[0] - half) * scale + offset, (limits[1] + half) * scale + offset))
    fills = _fills(variable.attrs, variable.dtype, variable.dtype, where)
    return Packing(1.0, 0.0, variable.dtype, fills, (unpacked[0], unpacked[1]), doubtful)


def scale_and_offset(attributes: Mapping[str, Any], where: str) -> tuple[float, float]:
    """Scale and offset of packed numbers: value = scale · number + offset.

    Args:
        attributes: Those of the variable.
        where: File and variable, for errors.

    Returns:
        Both; 1 and 0 where the attributes are silent.

    Raises:
        CanonicalizationError: One of them is not one finite number, or all values would be the same.
    """
    found = []
    for key, default in zip(_PACKED, (1.0, 0.0), strict=True):
        numbers = _numbers(attributes, key, where) if key in attributes else [default]
        if len(numbers) != 1 or not np.isfinite(numbers[0]) or (key == "scale_factor" and numbers[0] == 0):
            raise CanonicalizationError(
                where,
                expected=f"one finite number{' other than 0' * (key == 'scale_factor')} in the attribute {key!r}",
                received=f"{', '.join(f'{number:g}' for number in numbers[:3]) or 'none'}"
                f"{' and more' * (len(numbers) > 3)}",
                remedy="Correct the attribute of the file.",
            )
        found += numbers
    return found[0], found[1]


def _is_decoded(variable: xr.Variable) -> bool:
    """Whether xarray has unpacked a variable, and kept in its encoding what it was."""
    keys = (*_PACKED, "_Unsigned")
    if any(key in variable.attrs for key in keys):
        return False
    stored = np.dtype(variable.encoding.get("dtype", variable.dtype))
    return any(key in variable.encoding for key in keys) or (
        variable.dtype.kind == "f" and stored.kind in "iu"
    )


def _fills(
    attributes: Mapping[str, Any], stored: np.dtype[Any], numbers: np.dtype[Any], where: str
) -> tuple[Any, ...]:
    """Numbers that mean "missing", in their type."""
    fills = [fill for key in ("_FillValue", "missing_value") for fill in _numbers(attributes, key, where)]
    meant = [_undisguised(fill, stored, numbers) for fill in fills]
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.array(meant, dtype=np.float64).astype(numbers)
    # A fill value that an integer type cannot hold marks nothing.
    return tuple(c for c, fill in zip(cast, meant, strict=True) if numbers.kind == "f" or c == fill)


def _limits(
    attributes: Mapping[str, Any],
    stored: np.dtype[Any],
    numbers: np.dtype[Any],
    packing: tuple[float, float],
    where: str,
) -> tuple[tuple[float, float], str]:
    """Smallest and largest number that is none of those CF calls missing, and the limits that may not be limits of it.

    Limits are numbers if they are of the kind of those, as CF (section 2.5.1) wants it. Fractions beside packed
    integers are values, as many files have it. Integers beside fractions may be what a tool left behind that
    unpacked the field.
    """
    scale, offset = packing
    low, high = -np.inf, np.inf
    doubtful = []
    for key in ("valid_range", "valid_min", "valid_max"):
        found = _numbers(attributes, key, where)
        if not found or len(found) != {"valid_range": 2}.get(key, 1):
            continue  # no limits of this kind
        whole = np.asarray(attributes[key]).dtype.kind in "iu"
        if stored.kind in "iu" and whole:
            found = [_undisguised(number, stored, numbers) for number in found]
        elif stored.kind in "iu":
            found = sorted((number - offset) / scale for number in found)
            if scale < 0:  # the smallest value is the largest number that is stored
                key = {"valid_min": "valid_max", "valid_max": "valid_min"}.get(key, key)
        elif whole:
            doubtful.append(f"{key} {', '.join(f'{number:g}' for number in found)}")
        low = max(low, found[0]) if key != "valid_max" else low
        high = min(high, found[-1]) if key != "valid_min" else high
    if stored.kind in "iu":  # of whole numbers; that a limit is one shows but for its rounding
        low, high = float(np.ceil(low - 1e-3)), float(np.floor(high + 1e-3))
    return (low, high), " and ".join(doubtful)


def _undisguised(number: float, stored: np.dtype[Any], numbers: np.dtype[Any]) -> float:
    """What a number as the stored type writes it means: -2 of unsigned 16 bits is 65534."""
    if stored == numbers or not np.iinfo(stored).min <= number <= np.iinfo(stored).max:
        return number
    return float(np.float64(number).astype(stored).astype(numbers))


def _numbers(attributes: Mapping[str, Any], key: str, where: str) -> list[float]:
    """An attribute that holds a number or several; none if it is not there."""
    value = attributes.get(key, [])
    try:
        return [float(number) for number in np.ravel(value)]
    except (TypeError, ValueError, OverflowError) as error:
        raise CanonicalizationError(
            where,
            expected=f"a number in the attribute {key!r}",
            received=repr(value),
            remedy="Correct the attribute of the file.",
        ) from error
