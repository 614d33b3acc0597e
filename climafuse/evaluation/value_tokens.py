"""Which tokens of an answer carry a fact: those that would be others if the fact were another.

In "The temperature averages 12 °C." the sentence follows from the question; only "12" comes from the fields. What an
attribution asks about is the value, not the phrase around it. A token carries the fact if, after the same words,
another value of the same fact would have gone on differently: of "No cell has frost." it is "No", for "Some cells have
frost." begins otherwise, and of a number each digit at which another number parts from it, its sign included.
"""

from __future__ import annotations

from collections.abc import Iterator

from climafuse.facts.kinds import FACT_KINDS, Fact, Value, position_decimals, rule_of, spoken
from climafuse.facts.phrasing import WORDINGS, Wording, phrase
from climafuse.model.processing import ClimateTextProcessor

# Steps from a value to its neighbors, in its last digit: a digit at each place up to thousands may be another.
_STEPS = tuple(sign * digit * 10**place for place in range(5) for digit in range(1, 10) for sign in (1, -1))


def value_tokens(
    processor: ClimateTextProcessor, prompt: str, answer: str, fact: Fact | None
) -> tuple[list[int], list[int]]:
    """Find the tokens of an answer that carry a fact.

    Args:
        processor: Of the model.
        prompt: The question.
        answer: The answer, which may say more than this fact.
        fact: What it states, as parsed; None for the answer as a whole.

    Returns:
        The tokens of prompt and answer [S], as `ClimateTextProcessor.encode` gives them; and the positions of those
        that carry the fact. All of the answer but its end, where no fact is given or the answer does not state it in
        one of our wordings.
    """
    tokens, start = processor.encode(prompt, answer)
    found: set[int] = set()
    for other in () if fact is None else _otherwise(answer, fact):
        changed, _ = processor.encode(prompt, other)
        for place, (token, new) in enumerate(zip(tokens[start:], changed[start:], strict=False), start):
            if token != new:
                found.add(place)
                break
    end = len(tokens) - 1  # the token that ends the text is no word
    return list(tokens), sorted(found) or list(range(start, end))


def _otherwise(answer: str, fact: Fact) -> Iterator[str]:
    """The answer as it would be if the fact had other values, in the same wording."""
    plain = answer.rstrip(".")
    for wording in WORDINGS.get(fact.kind, ()):
        if wording.variables and fact.variable not in wording.variables:
            continue
        stated = _stated(fact, wording)
        if stated in plain:
            for value in _other_values(fact):
                other = Fact(fact.kind, fact.variable, value, fact.qualifiers, fact.cell)
                yield answer.replace(stated, _stated(other, wording), 1)


def _stated(fact: Fact, wording: Wording) -> str:
    """Without the full stop, which bulletins may leave out."""
    return phrase(fact, wording)[1].removesuffix(".")


def _other_values(fact: Fact) -> Iterator[Value]:
    value = spoken(fact).value
    if isinstance(value, str):
        yield from (other for other in FACT_KINDS[fact.kind].values if other != value)
    elif isinstance(value, tuple):
        unit = 1.0 if fact.cell is None else 10.0 ** -position_decimals(fact.cell)
        latitude, longitude = value
        for step in _STEPS:
            if abs(latitude + step * unit) <= 90:
                yield latitude + step * unit, longitude
            if abs(step * unit) < 360:
                yield latitude, (longitude + step * unit) % 360
        yield -latitude, longitude
        yield latitude, -longitude % 360
    else:
        yield -value
        for step in _STEPS:
            yield value + step * 10.0 ** -rule_of(fact).decimals
