"""What a text says beside what the fields say: for people who read an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from climafuse.data.window import Window
from climafuse.facts.extract import extract
from climafuse.facts.kinds import Fact, agrees, rule_of, sources, spoken
from climafuse.facts.parse import Key, parse
from climafuse.facts.phrasing import topic_of


def check_facts(
    text: str, window: Window, *, prompt: str | None = None, key: Key | None = None
) -> list[dict[str, Any]]:
    """What a text says, beside the same facts computed from the fields.

    Args:
        text: The answer.
        window: The fields it is about.
        prompt: What was asked: a bare value answers it.
        key: The fact asked for, where it is known otherwise than by the prompt's words.

    Returns:
        One row for each fact in the text: `fact`, `said`, `field` and `exact` (None where the fields do not
        tell), and `right` (None where it cannot be told).
    """
    facts = parse(text, prompt, key=key)
    return [compare(said, truth) for said, truth in zip(facts, exact_facts(facts, window), strict=True)]


def exact_facts(facts: Sequence[Fact], window: Window) -> list[Fact | None]:
    """What the fields say of the same: values, and of what is said to be absent, whether it is.

    Args:
        facts: Read from a text.
        window: The fields it is about.

    Returns:
        One for each; None where the fields do not tell.
    """
    exact = {fact.key: fact for fact in extract(window)} if facts else {}
    held = set(window.available())

    def presence(variable: str) -> Fact:
        return Fact("absent", variable, "absent" if held.isdisjoint(sources(variable)) else "given")

    return [presence(fact.variable) if fact.kind == "absent" else exact.get(fact.key) for fact in facts]


def compare(said: Fact, truth: Fact | None) -> dict[str, Any]:
    """One row of `check_facts`.

    Args:
        said: A fact read from a text.
        truth: The exact one of its key; None where the fields do not tell.
    """
    return {
        "fact": topic_of(said),
        "said": fact_value(said),
        "field": None if truth is None else fact_value(spoken(truth)),
        "right": None if truth is None else agrees(said, truth),
        "exact": None if truth is None else truth.value,
    }


def fact_value(fact: Fact) -> str:
    """The value of a fact with its unit."""
    if isinstance(fact.value, str):
        return fact.value
    if isinstance(fact.value, tuple):
        latitude, longitude = fact.value
        longitude = (longitude + 180) % 360 - 180
        north, east = "S" if latitude < 0 else "N", "W" if longitude < 0 else "E"
        return f"{abs(latitude):g}°{north} {abs(longitude):g}°{east}"
    return f"{fact.value:g} {rule_of(fact).unit}"
