"""From words back to facts: the inverse of ``phrasing.py``, made from the same templates.

A text may hold anything: prose around the facts, wrong units, half a sentence. Only what one of our wordings
says in full is a fact; a text cut short never yields another fact than the whole text would.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from climafuse.facts.kinds import (
    AXES,
    EVENTS,
    FACT_KINDS,
    Fact,
    Qualifiers,
    Value,
    name_of,
)
from climafuse.facts.phrasing import NAMED_ABSENCES, WORDINGS

Key = tuple[str, str, Qualifiers]


def parse(text: str, prompt: str | None = None, *, key: Key | None = None) -> list[Fact]:
    """Facts that a text states.

    Args:
        text: Any string, such as the output of a model.
        prompt: The question it answers. Without it, answers such as a bare "8 °C" or "not given" mean nothing;
            with it, they are read as the value of the fact asked for, if the text states no fact in full.
        key: What the question asks for, where that is known; it may then have any words. None reads it from the
            prompt, in which it must be one of our wordings, or name a variable.

    Returns:
        Facts in order of appearance, each once, as ``spoken`` gives them. Contradictory statements are all
        kept.
    """
    plain = _normalize(text)
    facts = list(dict.fromkeys(_statements(plain)))
    if facts:
        return facts
    words, read = _subject(prompt or "")
    # That something is absent is an answer, not a question: which value was asked for, the words may tell.
    if key is None or (key[0] == "absent" and read is not None and read[1] == key[1]):
        key = read
    if key is None:
        return []
    if _DENIAL.search(plain):
        return [Fact("absent", key[1], "absent")]
    return [] if key[0] == "absent" else _elliptic(_after_echo(plain, words), key)


def _subject(prompt: str) -> tuple[str, Key | None]:
    """The words of a question, and what they ask for; of a variable known by its name only, that it is absent."""
    question = _question(prompt)
    if question is not None:
        return question
    variable = named(prompt)
    return _normalize(prompt), None if variable is None else ("absent", variable, ())


def named(text: str) -> str | None:
    """The variable that a text names; of several, that with the longest name; None where none is named.

    Args:
        text: Such as a question about what no kind of fact speaks of.
    """
    longest = max(_name_pattern().findall(_normalize(text)), key=len, default=None)
    return None if longest is None else _all_names()[longest]


def asked(prompt: str) -> Key | None:
    """What a question asks for.

    Args:
        prompt: A question in one of our wordings, with anything around it.

    Returns:
        (kind, variable, qualifiers) of the fact that would answer it; None if the prompt is no such question.
    """
    question = _question(prompt)
    return None if question is None else question[1]


def _question(prompt: str) -> tuple[str, Key] | None:
    """The longest question in a prompt, and what it asks for."""
    plain = _normalize(prompt)
    found: tuple[str, Key] | None = None
    for pattern in _questions():
        if pattern.literal in plain:
            for match in pattern.regex.finditer(plain):
                key = pattern.key(match)
                if key is not None and (found is None or len(found[0]) < len(match[0])):
                    found = match[0], key
    return found


def forget() -> None:
    """Compile the patterns anew at the next call: wordings, quantities or events have changed."""
    for compiled in (_answers, _questions, _value_pattern, _all_names, _name_pattern, _classes):
        compiled.cache_clear()


_CHARACTERS = str.maketrans("−–‐‑º˚ñÑ", "----°°nN")
_SPACES = re.compile(r"\s+")


def _normalize(text: str) -> str:
    """One case, one kind of space, dash and degree sign; no tilde on Niño."""
    text = unicodedata.normalize("NFC", text).translate(_CHARACTERS).lower()
    return _SPACES.sub(" ", text).strip(" ")


# Units as a model may write them; a unit without an entry is read as it is spoken.
_UNITS = {
    "°C": r"°? ?c(?:elsius)?|deg(?:rees?)? ?c(?:elsius)?",
    "hPa": r"hpa|mbar|mb|millibars?|hectopascals?",
    "m/s": r"m/s|m s-1|ms-1|met(?:er|re)s per second",
    "mm": r"mm|millimet(?:er|re)s?",
    "mm/day": r"mm/d(?:ay)?|mm per day|mm d-1",
}
_NUMBER = r"(?P<number>(?:minus |[+-] ?)?[0-9]{1,6}(?:\.[0-9]{1,3})?) ?(?P<unit>%s)(?![\w/-])"
_POSITION = (
    r"(?P<latitude>[0-9]{1,2}(?:\.[0-9]{1,3})?) ?°? ?(?P<northsouth>[ns])(?:orth|outh)?(?:,| and)? ?"
    r"(?P<longitude>[0-9]{1,3}(?:\.[0-9]{1,3})?) ?°? ?(?P<eastwest>[ew])(?:ast|est)?(?![\w-])"
)


@dataclass(frozen=True)
class _Pattern:
    """One template as a regular expression.

    Args:
        regex: With a group for each slot.
        literal: A part that every match holds; looking for it first saves most of the time.
        kind: Of the facts that the template states or asks for.
        variable: Theirs, where no slot tells it.
        value: Theirs, where no slot tells it.
    """

    regex: re.Pattern[str]
    literal: str
    kind: str
    variable: str | None = None
    value: Value | None = None

    def key(self, match: re.Match[str]) -> Key | None:
        """What a match is about; None where its parts do not fit together."""
        groups = match.groupdict()
        variable = self.variable
        if "name" in groups:
            variable = _all_names()[groups["name"]]
        if FACT_KINDS[self.kind].qualifier == "axis":
            axis = _axis_of(groups)
            return None if axis is None or variable is None else (self.kind, variable, (("axis", axis),))
        if FACT_KINDS[self.kind].qualifier == "event":
            for name, event in EVENTS.items():
                if groups.get("event") == _normalize(event.noun) or (
                    groups.get("beyond") == _normalize(event.beyond) and variable == event.variable
                ):
                    return self.kind, event.variable, (("event", name),)
            return None
        return None if variable is None else (self.kind, variable, ())

    def fact(self, match: re.Match[str]) -> Fact | None:
        """The fact that a match states; None where its parts do not fit together."""
        key = self.key(match)
        if key is None:
            return None
        value = self.value if self.value is not None else _read_value(match.groupdict(), self.kind, key[1])
        return None if value is None else Fact(key[0], key[1], value, key[2])


def _axis_of(groups: Mapping[str, str]) -> str | None:
    """The axis whose halves a match names, both of them or the one with the higher value."""
    for axis, halves in AXES.items():
        if "first" in groups:
            if (groups["first"], groups["second"]) == halves:
                return axis if groups.get("value", halves[0]) in halves else None
        elif groups.get("value") in halves:
            return axis
    return None


def _read_value(groups: Mapping[str, str], kind: str, variable: str) -> Value | None:
    if "number" in groups:
        unit = FACT_KINDS[kind].rules[variable].unit
        if re.fullmatch(_unit(unit), groups["unit"]) is None:
            return None
        number = float(groups["number"].replace("minus ", "-").replace(" ", ""))
        return (-number if groups.get("move") == "down" else number) + 0.0  # + 0.0: no "-0"
    if "latitude" in groups:
        latitude, longitude = float(groups["latitude"]), float(groups["longitude"])
        if latitude > 90 or longitude > 360:
            return None
        latitude = -latitude if groups["northsouth"] == "s" else latitude
        longitude = -longitude if groups["eastwest"] == "w" else longitude
        return latitude + 0.0, round(longitude % 360.0, 3) % 360.0
    return _classes(kind).get(_class_key(groups["value"])) if "value" in groups else None


def _unit(unit: str) -> str:
    return _UNITS.get(unit, re.escape(unit.lower()))


def _class_key(words: str) -> str:
    """Classes are told apart without spaces and dashes: north-west is northwest."""
    return words.replace(" ", "").replace("-", "")


@lru_cache
def _classes(kind: str) -> dict[str, str]:
    return {_class_key(_normalize(value)): value for value in FACT_KINDS[kind].values}


@lru_cache
def _all_names() -> dict[str, str]:
    return _names(FACT_KINDS["absent"].rules)


@lru_cache(maxsize=1)
def _name_pattern() -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{_any_of(_all_names())})(?![\w-])")


def _names(variables: Iterable[str]) -> dict[str, str]:
    return {_normalize(name_of(variable)): variable for variable in variables}


def _any_of(words: Iterable[str]) -> str:
    """Longest first, so that "sea surface temperature" is not read as another name that it begins with."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _any_class(values: Sequence[str]) -> str:
    """One of the classes. One that begins another ("north", "northwest") must be seen to end.

    At the very end of a text it may have been cut off.
    """
    plain = [_normalize(value) for value in values]
    patterns = []
    for value in sorted(plain, key=len, reverse=True):
        begins_another = any(other != value and other.startswith(value) for other in plain)
        words = re.sub(r"^(north|south)(east|west)$", r"\1[- ]?\2", value)
        words = words if words != value else re.escape(value)
        patterns.append(words + (r"(?=[^\w-])" if begins_another else r"(?![\w-])"))
    return "|".join(patterns)


def _compile(
    template: str, kind: str, variables: Sequence[str], value: str | None, values: Sequence[str]
) -> _Pattern:
    """A template backwards.

    Args:
        template: With slots.
        kind: Of its facts.
        variables: That it may be about.
        value: Of its facts, if the template stands for one.
        values: That its slot {value} may take.
    """
    units = "|".join(
        sorted({_unit(FACT_KINDS[kind].rules[v].unit) for v in variables}, key=len, reverse=True)
    )
    halves = [half for pair in AXES.values() for half in pair]
    slots = {
        "name": f"(?P<name>{_any_of(_names(variables))})",
        "first": f"(?P<first>{_any_of(halves)})",
        "second": f"(?P<second>{_any_of(halves)})",
        # A noun that ends a statement must be seen to end: "no heat" is none in "no heat flux".
        "event": f"(?P<event>{_any_of(_normalize(event.noun) for event in EVENTS.values())})",
        "beyond": f"(?P<beyond>{_any_of(_normalize(event.beyond) for event in EVENTS.values())})",
        "number": _NUMBER % units,
        "signed": _NUMBER % units,
        "move": "(?P<move>up|down) by " + _NUMBER % units,
        "position": _POSITION,
        "value": f"(?P<value>{_any_class(values)})",
    }
    end = r"(?= ?(?:[.,;!?]|$))" if template.rstrip(".?").endswith("{event}") else r"(?![\w-])"
    parts, literals = [], [""]
    for part in re.split(r"(\{\w+\})", template.rstrip(".?")):
        if part.startswith("{"):
            parts.append(slots[part[1:-1]])
        else:
            plain = _SPACES.sub(" ", part.translate(_CHARACTERS).lower())
            literals += re.split(r"[:,]", plain)
            parts.append(re.sub(r"([:,])", r"\1?", re.escape(plain).replace(r"\ ", " ")))
            # A value may stand behind a colon, whether or not our own words have one there.
            parts[-1] = re.sub(r"(?<![:,?]) $", ":? ", parts[-1])
    regex = re.compile(r"(?<![\w-])" + "".join(parts) + end)
    alone = variables[0] if len(variables) == 1 else None
    return _Pattern(regex, max(literals, key=len), kind, alone, value)


@lru_cache(maxsize=1)
def _answers() -> tuple[_Pattern, ...]:
    patterns = []
    for kind, wordings in WORDINGS.items():
        values = FACT_KINDS[kind].values
        for wording in wordings:
            variables = wording.variables or tuple(FACT_KINDS[kind].rules)
            rest = [value for value in values if value not in wording.cases]
            if wording.answer:
                patterns.append(_compile(wording.answer, kind, variables, None, rest))
            patterns += [
                _compile(text, kind, variables, value, rest) for value, text in wording.cases.items()
            ]
    names = tuple(FACT_KINDS["absent"].rules)
    patterns += [_compile(template, "absent", names, "absent", ()) for template in NAMED_ABSENCES]
    return tuple(patterns)


@lru_cache(maxsize=1)
def _questions() -> tuple[_Pattern, ...]:
    return tuple(
        _compile(wording.question, kind, wording.variables or tuple(FACT_KINDS[kind].rules), None, ())
        for kind, wordings in WORDINGS.items()
        for wording in wordings
    )


def _statements(plain: str) -> list[Fact]:
    """Facts in order of appearance; of statements that overlap, the longest."""
    found = [
        (match.start(), match.end(), fact)
        for pattern in _answers()
        if pattern.literal in plain
        for match in pattern.regex.finditer(plain)
        if (fact := pattern.fact(match)) is not None
    ]
    found.sort(key=lambda item: item[0] - item[1])
    kept: list[tuple[int, int, Fact]] = []
    for start, end, fact in found:
        if all(end <= other_start or other_end <= start for other_start, other_end, _ in kept):
            kept.append((start, end, fact))
    return [fact for _, _, fact in sorted(kept, key=lambda item: item[:2])]


_DENIAL = re.compile(
    r"\b(?:not (?:given|known|available|held|in the(?:se)? fields)|(?:do|does) not hold (?:that|it)"
    r"|no (?:data|such (?:data|variable)))\b"
)
_LEAD = "(?:it is )?(?:about |at |from |in )?(?:the )?"
_ECHO = re.compile(r"(?P<words>[a-z ]+) (?:is|are) (?=\S)")
_FILLERS = frozenset({"the", "a", "of", "is", "over", "area"})


def _after_echo(plain: str, question: str) -> str:
    """What follows where a text repeats its question: "the mean temperature is" of the mean temperature.

    Models that were not taught our wordings answer so. Only words of the question are passed over: "the highest
    temperature is 12 °C" says nothing of the mean.
    """
    match = _ECHO.match(plain)
    if match is None or not set(match["words"].split()) <= set(re.findall(r"\w+", question)) | _FILLERS:
        return plain
    return plain[match.end() :]


def _elliptic(plain: str, key: Key) -> list[Fact]:
    """The value of the fact asked for, if the text is nothing but this value."""
    kind, variable, qualifiers = key
    if variable not in FACT_KINDS[kind].rules:  # no such fact, whatever a text says
        return []
    match = _value_pattern(kind, variable).match(plain)
    value = None if match is None else _read_value(match.groupdict(), kind, variable)
    if value is None:
        return []
    if (
        FACT_KINDS[kind].qualifier == "axis"
        and value != "equal"
        and value not in AXES[dict(qualifiers)["axis"]]
    ):
        return []
    return [Fact(kind, variable, value, qualifiers)]


@lru_cache(maxsize=1024)
def _value_pattern(kind: str, variable: str) -> re.Pattern[str]:
    form = FACT_KINDS[kind].form
    if form == "number":
        value = _NUMBER % _unit(FACT_KINDS[kind].rules[variable].unit)
    else:
        value = _POSITION if form == "position" else f"(?P<value>{_any_class(FACT_KINDS[kind].values)})"
    return re.compile(rf"{_LEAD}{value}[.!]?$")
