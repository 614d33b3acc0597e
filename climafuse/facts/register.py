"""A new variable, event or kind of fact: one registration, and every part of this package knows it."""

from __future__ import annotations

from collections.abc import Sequence

from climafuse.errors import UsageError
from climafuse.facts.extract import EXTRACTORS, Extractor
from climafuse.facts.kinds import (
    EVENTS,
    FACT_KINDS,
    SPOKEN_VARIABLES,
    Event,
    FactKind,
    SpokenVariable,
    rules_of,
)
from climafuse.facts.parse import forget
from climafuse.facts.phrasing import WORDINGS, Wording


def register_variable(variable: str, quantity: SpokenVariable) -> None:
    """Let the built-in kinds speak of another variable.

    Args:
        variable: Canonical name of a field.
        quantity: How it is spoken.

    Raises:
        UsageError: The variable, or its name in words, is taken.
    """
    if variable in SPOKEN_VARIABLES or quantity.name in {known.name for known in SPOKEN_VARIABLES.values()}:
        raise _taken("variable", f"{variable} ({quantity.name})")
    SPOKEN_VARIABLES[variable] = quantity
    for kind, rule in rules_of(variable, quantity).items():
        FACT_KINDS[kind].rules[variable] = rule
    forget()


def register_event(name: str, event: Event) -> None:
    """Let the kind "event" ask for another threshold.

    Args:
        name: Of the event, its qualifier.
        event: The threshold and its words.

    Raises:
        UsageError: The name or noun is taken.
    """
    if name in EVENTS or event.noun in {known.noun for known in EVENTS.values()}:
        raise _taken("event", f"{name} ({event.noun})")
    EVENTS[name] = event
    FACT_KINDS["event"].rules.setdefault(event.variable, next(iter(FACT_KINDS["event"].rules.values())))
    forget()


def register_kind(kind: FactKind, extractor: Extractor, wordings: Sequence[Wording]) -> None:
    """Add a kind of fact.

    Args:
        kind: Its name, form and rules by variable.
        extractor: From the summary of a window to facts of this kind.
        wordings: At least one question with its answer. No other kind may ask or answer in the same words.

    Raises:
        UsageError: The name is taken, or there is no wording.
    """
    if kind.name in FACT_KINDS:
        raise _taken("kind", kind.name)
    if not wordings:
        raise UsageError(
            "wordings", expected="at least one", received="none", remedy="Give a question and its answer."
        )
    FACT_KINDS[kind.name] = kind
    EXTRACTORS[kind.name] = extractor
    WORDINGS[kind.name] = tuple(wordings)
    forget()


def _taken(argument: str, received: str) -> UsageError:
    return UsageError(
        argument,
        expected="a name that is not taken",
        received=received,
        remedy="Choose another name; what is there stays as it is.",
    )
