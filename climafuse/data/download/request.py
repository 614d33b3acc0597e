"""What all downloads are asked for: variables by canonical name, days, hours of the day."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from climafuse.data.times import parse_time
from climafuse.data.variables import VARIABLES, Variable, find_variable
from climafuse.errors import UsageError


@dataclass(frozen=True)
class Days:
    """A range of days, first and last included."""

    first: date
    last: date

    @classmethod
    def of(cls, start: str | date, end: str | date) -> Days:
        """From what a user gives.

        Args:
            start: ISO date, or a date.
            end: The same, of the last day.

        Raises:
            UsageError: No dates, or the last before the first.
        """
        first, last = (_day(value, name) for value, name in ((start, "start"), (end, "end")))
        if last < first:
            raise UsageError(
                "end",
                expected=f"a day not before the start, {first}",
                received=last,
                remedy="Give the earlier day as the start; both days are included.",
            )
        return cls(first, last)

    def each(self) -> list[date]:
        """Every day."""
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    def __str__(self) -> str:
        """`20200101-20200131`, for names of files; one day alone is written once."""
        return "-".join(f"{day:%Y%m%d}" for day in dict.fromkeys((self.first, self.last)))

    def split(self, period: str) -> list[Days]:
        """The same days in pieces: by "month" or by "day"."""
        groups: dict[Hashable, list[date]] = {}
        for day in self.each():
            groups.setdefault(_PERIODS[period](day), []).append(day)
        return [Days(group[0], group[-1]) for group in groups.values()]


_PERIODS: dict[str, Callable[[date], Hashable]] = {
    "month": lambda day: (day.year, day.month),
    "day": lambda day: day,
}


def check_hours(hours: Sequence[int] | None) -> tuple[int, ...]:
    """Hours of the day, ascending; all 24 where None.

    Raises:
        UsageError: One is none.
    """
    chosen = tuple(sorted(set(range(24) if hours is None else hours)))
    if not chosen or chosen[0] < 0 or chosen[-1] > 23:
        raise UsageError(
            "hours",
            expected="hours of the day from 0 to 23 (UTC)",
            received=", ".join(map(str, chosen)) or "none",
            remedy="Write for example 0,6,12,18.",
        )
    return chosen


def stored_variables(names: Sequence[str]) -> list[Variable]:
    """The variables to fetch: those asked for, derived ones replaced by what they are computed from.

    Raises:
        UsageError: None is asked for.
        VariableNotFoundError: The table holds no such variable.
    """
    if not names:
        raise UsageError(
            "variables",
            expected="at least one variable",
            received="none",
            remedy="Name it as in -v t2m; a service holds far more than anybody wants at once.",
        )
    found: dict[str, Variable] = {}
    for name in names:
        variable = find_variable(name)
        inputs = variable.derive.inputs if variable.derive else (variable.name,)
        found |= {name: VARIABLES[name] for name in inputs}
    return list(found.values())


def require(module: str, *, extra: str, service: str) -> Any:
    """A library that only this service needs.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            service,
            expected=f"the package {module.partition('.')[0]}",
            received=str(error),
            remedy=f"Install it with `pip install 'climafuse[{extra}]'`.",
        ) from error


def _day(value: str | date, argument: str) -> date:
    return parse_time(value, argument=argument).item().date() if isinstance(value, str) else value
