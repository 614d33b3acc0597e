"""Stored datasets -> one canonical dataset: which variable is which, on which axes, in which unit.

Everything is settled from the metadata when files are opened, and what cannot be made canonical is refused
then; values are touched on use (``lazy.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from climafuse.data.coords import (
    Axis,
    check_experiment_version,
    check_grid,
    has_time,
    latitude_axis,
    level_axis,
    longitude_axis,
    no_pressure,
    same_places,
    time_axis,
    time_bounds,
)
from climafuse.data.lazy import DerivedField, LazyField, StoredField, reading
from climafuse.data.packing import packing_of
from climafuse.data.products import get_product, recognized
from climafuse.data.sums import SumLengths, check_sum_lengths, sum_lengths
from climafuse.data.times import days_since_epoch, format_time
from climafuse.data.variables import (
    QUANTITIES,
    VARIABLES,
    Variable,
    cell_methods,
    check_height,
    check_standard_name,
    find_variable,
    match_variable,
    named_variable,
    time_method,
    unit_conversion,
)
from climafuse.errors import CanonicalizationError, VariableNotFoundError

# The time of a field that has none.
_TIMELESS = Axis("time", None, np.empty(0, dtype="datetime64[s]"), np.empty(0, dtype=int))


def canonicalize(
    datasets: Sequence[tuple[str, xr.Dataset]], variables: Sequence[str] | None = None
) -> xr.Dataset:
    """Make stored datasets one canonical dataset, joined along time and across variables.

    Args:
        datasets: Name (for errors) and content of each file; encoded as stored, or decoded by xarray.
        variables: What to take, as in ``open_climate``; None for every variable of the table that is there.

    Returns:
        The canonical dataset, lazy.

    Raises:
        ClimateFileError: A file proves broken on reading its coordinates.
        VariableNotFoundError: A variable is absent.
        CanonicalizationError: Something cannot be made canonical without a guess.
    """
    files = [_File(where, dataset) for where, dataset in datasets]
    held = {name for file in files for name in file.matches}
    levels = {float(value) for file in files for value in file.levels}
    source = _join(dict.fromkeys(where for where, _ in datasets))
    ignored = sorted({name for file in files for name in file.ignored})
    off_pressure = {name: what for file in files for name, what in file.off_pressure.items()}
    also = _also(ignored, off_pressure)
    if variables is None:
        wanted = held
    else:
        products = {product for file in files for product in file.products}
        known = [_known(name, held, levels, source, also, products) for name in _several(variables)]
        # From here on by canonical name: a name of two products means what it does in these files.
        variables = [variable.name for variable in known]
        wanted = {name for variable in known for name in _needed(variable, held, levels) or ()}
    if not wanted:
        rename = "Rename the fields to canonical names or those of a known product."
        raise VariableNotFoundError(
            _brief(source),
            expected="at least one variable of climafuse's table",
            received=f"variables {_join(ignored)}",
            remedy=rename if set(ignored) - off_pressure.keys() else _also([], off_pressure).strip(),
        )
    dataset = _assemble(files, [name for name in VARIABLES if name in wanted])
    dataset.attrs["climate_source"] = dataset.attrs.get("climate_source", source)
    if ignored:
        dataset.attrs["ignored_variables"] = _join(ignored)
    return dataset if variables is None else select_variables(dataset, variables)


def select_variables(dataset: xr.Dataset, variables: Sequence[str]) -> xr.Dataset:
    """Variables of a canonical dataset by name: as they are, one level of one, or derived from others; lazy.

    Args:
        dataset: Canonical.
        variables: Canonical names or those of a product; "t850" picks a level of ``t``, "ws10" is computed
            from ``u10`` and ``v10`` where the dataset does not hold it.

    Returns:
        The dataset with these variables, in this order.

    Raises:
        VariableNotFoundError: A variable is neither there nor can be derived.
    """
    held, levels = _held(dataset)
    source = str(dataset.attrs.get("climate_source", "dataset"))
    also = _also([dataset.attrs["ignored_variables"]] if "ignored_variables" in dataset.attrs else [])
    known = [_known(name, held, levels, source, also) for name in _several(variables)]
    selected = {variable.name: _deliver(dataset, variable) for variable in known}
    coordinates = {
        name: dataset.coords[name]
        for name in ("time", "level", "latitude", "longitude")
        if name in dataset.coords and any(name in array.dims for array in selected.values())
    }
    return xr.Dataset(selected, coords=coordinates, attrs=dataset.attrs)


def available_variables(dataset: xr.Dataset) -> list[str]:
    """Canonical names that ``select_variables`` can deliver: fields, their channels, derived variables.

    Args:
        dataset: Canonical.

    Returns:
        The names, in the order of the table.
    """
    return _available(*_held(dataset))


def _held(dataset: xr.Dataset) -> tuple[set[str], set[float]]:
    levels = np.atleast_1d(dataset["level"].values) if "level" in dataset.coords else ()
    return {str(name) for name in dataset.data_vars}, {float(value) for value in levels}


def _needed(variable: Variable, held: Collection[str], levels: Collection[float]) -> set[str] | None:
    """Names of the held fields that deliver a variable; None if they do not."""
    if variable.name in held:
        return {variable.name}
    if variable.parent in held and variable.level in levels:
        return {str(variable.parent)}
    if variable.derive is None:
        return None
    parts = [_needed(VARIABLES[name], held, levels) for name in variable.derive.inputs]
    return None if None in parts else {name for part in parts if part for name in part}


def _available(held: Collection[str], levels: Collection[float]) -> list[str]:
    return [name for name, variable in VARIABLES.items() if _needed(variable, held, levels) is not None]


def _known(
    name: str,
    held: Collection[str],
    levels: Collection[float],
    source: str,
    also: str,
    products: Collection[str] = (),
) -> Variable:
    """The variable a name stands for, if the held fields deliver it."""
    try:
        variable: Variable | None = find_variable(name, products=products)
    except VariableNotFoundError:
        variable = None
    if variable is None or _needed(variable, held, levels) is None:
        near = _OTHER_QUANTITY.get(variable.name if variable else "")
        if near is not None and near in held:
            also += f" {near} is there, but another quantity: {VARIABLES[near].long_name}, {VARIABLES[near].units}."
        available = _available(held, levels)
        raise VariableNotFoundError(
            f"variable {name!r}",
            expected=f"one of {_spoken(available)}" if available else "fields of climafuse's table",
            received=f"a variable that {_brief(source)} does not hold",
            remedy=f"Choose {'one of these, or ' * bool(available)}another source.{also}",
        )
    return variable


# What is easily taken for one another.
_OTHER_QUANTITY = {"tp": "tprate", "tprate": "tp", "z": "zg", "zg": "z"}


def _brief(source: str) -> str:
    """The files of a dataset, for a message: a year of daily granules would fill the screen."""
    files = source.split(", ")
    return source if len(files) < 4 else f"{files[0]} to {files[-1]} ({len(files)} files)"


def _also(ignored: Sequence[str], off_pressure: Mapping[str, str] | None = None) -> str:
    """What else is there, and why it is of no use, for a message."""
    others = [name for name in ignored if name not in (off_pressure or {})]
    text = f" Fields outside climafuse's table of variables: {_join(others)}." if others else ""
    if off_pressure:
        text += (
            f" Not on pressure levels: {_join(off_pressure)} ({_join(dict.fromkeys(off_pressure.values()))}); "
            "take them from a product on pressure levels (MERRA-2: collections Np, not Nv), or interpolate them; "
            "if they are pressures, state their units."
        )
    return text


def _spoken(names: Sequence[str]) -> str:
    """Names for a message, the channels of one variable as a range."""
    channels: dict[str, list[str]] = {}
    for name in names:
        parent = VARIABLES[name].parent
        channels.setdefault(parent if parent is not None and parent in names else name, []).append(name)
    return _join(
        name
        for group in channels.values()
        for name in (group if len(group) < 7 else [group[0], f"{group[1]} to {group[-1]}"])
    )


def _deliver(dataset: xr.Dataset, variable: Variable) -> xr.DataArray:
    """A variable out of the fields that deliver it."""
    if variable.name in dataset.data_vars:
        return dataset[variable.name]
    if variable.parent in dataset.data_vars:
        level = dataset[variable.parent].sel(level=variable.level).drop_vars("level")
        return level.assign_attrs({k: v for k, v in variable.attributes.items() if k != "cell_methods"})
    assert variable.derive is not None  # _known has seen to it
    inputs = [_deliver(dataset, VARIABLES[name]) for name in variable.derive.inputs]
    lazy = DerivedField(variable.derive.function, [array.variable for array in inputs])
    # Of hourly mean components this is the speed of the mean wind: the cell method of the inputs says so.
    attributes = variable.attributes | {
        "cell_methods": inputs[0].attrs.get("cell_methods", variable.attributes["cell_methods"]),
        "comment": f"computed from {_join(variable.derive.inputs)}",
    }
    field = xr.Variable(inputs[0].dims, indexing.LazilyIndexedArray(lazy), attributes)
    return xr.DataArray(field, coords={dim: inputs[0].coords[dim] for dim in inputs[0].dims})


class _File:
    """One file, understood from its metadata: its axes, and which of its variables are which.

    Args:
        where: Name of the file, for errors.
        dataset: Its content.
    """

    def __init__(self, where: str, dataset: xr.Dataset) -> None:
        self.where = where
        self.products = recognized(dataset)
        for product in self.products:
            dataset = get_product(product).adapt(dataset)
        self.dataset = dataset
        with reading(where):
            check_experiment_version(dataset, where=where)
            check_grid(dataset, where=where)
            self.latitude = latitude_axis(dataset, where=where)
            self.longitude = longitude_axis(dataset, where=where)
            self.time = _TIMELESS if not has_time(dataset) else time_axis(dataset, where=where)
        horizontal = [a.dimension for a in (self.latitude, self.longitude) if a.dimension is not None]
        self.matches: dict[str, list[Hashable]] = {}
        """Canonical name -> names in the file that mean it."""
        self.ignored: list[str] = []
        """Gridded fields outside the table."""
        self.off_pressure: dict[str, str] = {}
        """Those on levels that are no pressures -> what they are."""
        self.levels: set[float] = set()
        """All pressure levels of any field, hPa."""
        for name, stored in dataset.variables.items():
            if set(horizontal) <= set(stored.dims) and stored.dtype.kind in "iuf" and stored.ndim > 1:
                self._match(name, stored)

    def _match(self, name: Hashable, stored: xr.Variable) -> None:
        level = self._level(stored)
        variable = match_variable(
            str(name), stored.attrs, has_level=level is not None, products=self.products
        )
        if variable is None and level is not None:
            variable = match_variable(str(name), stored.attrs, products=self.products)
        if variable is None:
            self.ignored.append(str(name))
            axes = (self.time, self.latitude, self.longitude)
            known = {axis.dimension for axis in axes}
            others = [dim for dim in stored.dims if dim not in known and stored.sizes[dim] > 1]
            if others and match_variable(str(name), stored.attrs, has_level=True, products=self.products):
                levels = self.dataset[others[0]].variable
                unit = levels.attrs.get("units", "no unit")
                said = f", {no_pressure(levels)}" if no_pressure(levels) else ""
                self.off_pressure[str(name)] = (
                    f"{stored.sizes[others[0]]} values of {str(others[0])!r} in {unit}{said}"
                )
            return
        if variable.on_levels and level is not None:
            self.levels |= {float(value) for value in level.values}
        self.matches.setdefault(variable.name, []).append(name)

    def _level(self, stored: xr.Variable) -> Axis | None:
        """The pressure levels a field lies on, if any."""
        horizontal_and_time = {axis.dimension for axis in (self.latitude, self.longitude, self.time)}
        others = [dim for dim in stored.dims if dim not in horizontal_and_time]
        with reading(self.where):
            found = [level_axis(self.dataset, dim, where=self.where) for dim in (*others, None)]
        return next((axis for axis in found if axis is not None), None)

    def _heights(self, stored: xr.Variable) -> list[float]:
        """Heights above the ground, in meters, that coordinates of one value state of a field."""
        said = f"{stored.attrs.get('coordinates', '')} {stored.encoding.get('coordinates', '')}".split()
        own = {*(said or self.dataset.coords), *stored.dims}
        heights = []
        for name, coordinate in self.dataset.variables.items():
            scale = QUANTITIES["height"].spellings.get(str(coordinate.attrs.get("units")))
            named = "height" in (name, coordinate.attrs.get("standard_name"))
            if named and scale is not None and name in own and coordinate.size == 1:
                with reading(self.where):
                    heights.append(float(coordinate.values.item()) * scale[0])
        return heights

    def field(self, variable: Variable) -> StoredField:
        """A canonical variable of this file, checked.

        Args:
            variable: One of ``matches``.

        Returns:
            The field, lazy.

        Raises:
            CanonicalizationError: It cannot be made canonical without a guess.
        """
        name = self._only_name(variable)
        stored = self.dataset.variables[name]
        time = self.time
        if variable.static and (time.dimension not in stored.dims or len(time.values) == 1):
            time = _TIMELESS  # it holds at the times of the others
        elif not len(time.values):
            time_axis(self.dataset, where=self.where)  # raises: there is none
        where = f"{self.where}: variable {str(name)!r}"
        level = self._level(stored) if variable.on_levels else None
        axes = (time, *((level,) if level else ()), self.latitude, self.longitude)
        self._check_dimensions(stored, axes, where)
        attributes = stored.attrs
        check_standard_name(variable, attributes, argument=where, products=self.products)
        check_height(variable, self._heights(stored), argument=where)
        scale, offset = unit_conversion(variable, attributes.get("units"), argument=where)
        others = [str(dim) for dim in stored.dims if dim != self.time.dimension]
        methods = cell_methods(variable, attributes, argument=where, other_axes=others)
        packing = packing_of(stored, where)
        kept = {key: attributes[key] for key in ("comment", "baseline", "source_name") if key in attributes}
        return StoredField(
            variable=stored,
            axes=axes,
            attributes={**variable.attributes, "cell_methods": methods, "source_name": str(name), **kept},
            packing=packing,
            scale=packing.scale * scale,
            offset=packing.offset * scale + offset,
            possible=QUANTITIES[variable.quantity].possible,
            where=where,
        )

    def sum_lengths(self, field: StoredField) -> SumLengths:
        """What this file tells of the length of the sums in one of its fields."""
        with reading(self.where):
            bounds = time_bounds(self.dataset, where=self.where)
        return sum_lengths(field.where, field.attributes["cell_methods"], self.time.values, bounds)

    def _only_name(self, variable: Variable) -> Hashable:
        """The name that means a variable; names that say so go before standard names."""
        names = self.matches[variable.name]
        names = [name for name in names if named_variable(str(name), self.products) == variable] or names
        if len(names) > 1:
            raise CanonicalizationError(
                self.where,
                expected=f"one field of {variable.name} ({variable.long_name})",
                received=f"variables {_join(names)}",
                remedy="Leave only the one that is meant in the file.",
            )
        return names[0]

    def _check_dimensions(self, stored: xr.Variable, axes: Sequence[Axis], where: str) -> None:
        known = {axis.dimension for axis in axes}
        for dim in stored.dims:
            if stored.sizes[dim] > 1 and dim not in known:
                raise CanonicalizationError(
                    where,
                    expected="dimensions time, pressure level, latitude, longitude",
                    received=f"also {dim!r} with {stored.sizes[dim]} values",
                    remedy=f"Select one value of {dim!r}; interpolate model levels to pressure levels.",
                )
        if axes[0].dimension is not None and axes[0].dimension not in stored.dims:
            raise CanonicalizationError(
                where,
                expected="a field at every time",
                received=f"dimensions {_join(stored.dims)}, without time",
                remedy="Give the field a time dimension.",
            )


def _assemble(files: Sequence[_File], names: Sequence[str]) -> xr.Dataset:
    """One dataset of all files: each variable from every file that holds it, joined along time."""
    first = files[0]
    for file in files[1:]:
        for axis, other in ((first.latitude, file.latitude), (first.longitude, file.longitude)):
            if not same_places(axis.values, other.values):
                raise CanonicalizationError(
                    file.where,
                    expected=f"the {axis.name}s of {first.where}: {_span(axis.values)}",
                    received=_span(other.values),
                    remedy="Open files of different grids one by one, or regrid them first.",
                )
    arrays: dict[str, xr.Variable] = {}
    coordinates: dict[str, Any] = {
        "latitude": ("latitude", first.latitude.values, _attributes("latitude", "degrees_north", "Y")),
        "longitude": ("longitude", first.longitude.values, _attributes("longitude", "degrees_east", "X")),
    }
    times: np.ndarray | None = None
    levels: np.ndarray | None = None
    for name in sorted(names, key=lambda name: VARIABLES[name].static):
        holders = [file for file in files if name in file.matches]
        fields = [file.field(VARIABLES[name]) for file in holders]
        if times is not None and fields[0].axes[0] is _TIMELESS:
            # What is the same at all times may be in any of the files: it is read once, and repeated.
            fields, owner, step = fields[:1], np.zeros(len(times), dtype=int), np.arange(len(times))
        else:
            own_times, owner, step = _join_times(name, holders)
            if VARIABLES[name].cell_method == "sum":
                _check_months(own_times, fields)
                told = [file.sum_lengths(field) for file, field in zip(holders, fields, strict=True)]
                check_sum_lengths(name, told)
            times = _check_equal("times", name, times, own_times, fields[0])
        _check_equal_fields(name, fields)
        if len(fields[0].axes) == 4:
            levels = _check_equal("levels", name, levels, fields[0].axes[1].values, fields[0])
        dims = tuple(axis.name for axis in fields[0].axes)
        lazy = LazyField(fields, owner, step)
        arrays[name] = xr.Variable(dims, indexing.LazilyIndexedArray(lazy), fields[0].attributes)
        if any(axis.twins for field in fields for axis in field.axes):
            lazy.check_twins()
    coordinates["time"] = ("time", times, {"standard_name": "time", "axis": "T"})
    if levels is not None:
        coordinates["level"] = (
            "level",
            levels,
            _attributes("air_pressure", "hPa", "Z") | {"positive": "down"},
        )
    shared = {
        key: value
        for key, value in first.dataset.attrs.items()
        if all(repr(file.dataset.attrs.get(key)) == repr(value) for file in files)
    }
    return xr.Dataset(
        {name: arrays[name] for name in names}, coordinates, shared | {"Conventions": "CF-1.11"}
    )


def _check_equal(
    what: str, name: str, reference: np.ndarray | None, values: np.ndarray, field: StoredField
) -> np.ndarray:
    """Times or levels of the variables so far, which those of one more must equal."""
    if reference is not None and not np.array_equal(reference, values):
        raise CanonicalizationError(
            field.where,
            expected=f"the {what} of the variables before it: {_span(reference)}",
            received=_span(values),
            remedy=f"Open variables of different {what} one by one, with `variables`, or complete the files.",
        )
    return values


def _join_times(name: str, files: Sequence[_File]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times of a variable over all files [T], which file holds each [T], and at which stored step [T]."""
    kinds = {file.time.values.dtype.kind for file in files}
    calendars = {file.time.values[0].calendar for file in files if file.time.values.dtype.kind == "O"}
    if len(kinds) > 1 or len(calendars) > 1:
        raise CanonicalizationError(
            _join(file.where for file in files),
            expected="one calendar",
            received=_join(sorted(calendars | ({"standard"} if len(kinds) > 1 else set()))),
            remedy="Convert the files to one calendar first.",
        )
    times = np.concatenate([file.time.values for file in files])
    if not len(times):
        raise CanonicalizationError(
            f"variable {name!r}",
            expected="fields with times",
            received=f"{_join(file.where for file in files)}, without any",
            remedy="Open what is the same at all times together with files that have times.",
        )
    owner = np.repeat(np.arange(len(files)), [len(file.time.values) for file in files])
    step = np.concatenate([file.time.positions for file in files])
    order = np.argsort(times, kind="stable")
    times, owner, step = times[order], owner[order], step[order]
    same = np.flatnonzero(times[1:] == times[:-1])
    if same.size:
        raise CanonicalizationError(
            f"variable {name!r}",
            expected="every time in one file",
            received=f"{format_time(times[same[0]])} in {files[owner[same[0]]].where} and "
            f"{files[owner[same[0] + 1]].where}",
            remedy="Leave out the files that overlap.",
        )
    return times, owner, step


def _check_equal_fields(name: str, fields: Sequence[StoredField]) -> None:
    """Refuse files whose fields of a variable differ in levels or cell methods."""
    for field in fields[1:]:
        for what, one, other in (
            ("cell_methods", fields[0].attributes["cell_methods"], field.attributes["cell_methods"]),
            ("levels", _levels(fields[0]), _levels(field)),
        ):
            if one != other:
                raise CanonicalizationError(
                    field.where,
                    expected=f"{what} of {name} as in {fields[0].where}: {one}",
                    received=str(other),
                    remedy="Open these files one by one: their fields are not the same quantity. If they are, let the "
                    "attributes of all files say so in the same words.",
                )


def _check_months(times: np.ndarray, fields: Sequence[StoredField]) -> None:
    """Refuse the monthly ``tp`` of ERA5: a mean of daily sums, in the units of a sum. A file may hold one month."""
    silent = [field for field in fields if time_method(field.variable.attrs) is None]
    if not silent or len(times) < 2:
        return
    if float(np.median(np.diff(days_since_epoch(times)))) >= 27:
        raise CanonicalizationError(
            silent[0].where,
            expected="a sum over the time step",
            received="monthly steps without cell_methods (in ERA5: a mean of daily sums)",
            remedy="State cell_methods: 'time: sum' if it is one; else convert the field to a rate.",
        )


def _levels(field: StoredField) -> str:
    return _join(field.axes[1].values) if len(field.axes) == 4 else "none"


def _span(values: np.ndarray) -> str:
    """Number, first and last of a coordinate."""
    first, last = (f"{v:g}" if values.dtype.kind == "f" else format_time(v) for v in (values[0], values[-1]))
    return f"{len(values)} values, {first} to {last}"


def _attributes(standard_name: str, units: str, axis: str) -> dict[str, str]:
    return {"standard_name": standard_name, "units": units, "axis": axis}


def _several(names: Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names  # a text is a sequence of letters to Python


def _join(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"
