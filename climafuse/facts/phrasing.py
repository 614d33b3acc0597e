"""From facts to words: questions with their answers, bulletins, and the answer that there is nothing to say.

The wording of an answer is decided by the wording of its question, so that an answer is a function of
question and fact: a model has nothing to guess but the fact, and stored texts come back. Answers stand on
their own, are short (each token costs time), and name no place or time. ``parse.py`` reads the same templates
backwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from climafuse.errors import UsageError
from climafuse.facts.kinds import (
    AXES,
    EVENTS,
    FACT_KINDS,
    Fact,
    name_of,
    position_decimals,
    rule_of,
    spoken,
)
from climafuse.facts.unseen import UNSEEN_NAMES

_Option = TypeVar("_Option")


@dataclass(frozen=True)
class Wording:
    """A question and the answer it calls for, with slots in braces (``SLOTS``).

    Args:
        question: Must not depend on the value of the fact.
        answer: Used for every value that ``cases`` lacks.
        cases: Spoken value → answer.
        variables: Only for these; empty for all of the kind.
    """

    question: str
    answer: str = ""
    cases: Mapping[str, str] = field(default_factory=dict)
    variables: tuple[str, ...] = ()


# The first wording of a kind is a full sentence, the second a compact form: bulletins use these two.
WORDINGS: dict[str, tuple[Wording, ...]] = {
    "mean": (
        Wording("What is the average {name} over the area?", "The {name} averages {number}."),
        Wording("What is the mean {name}?", "Mean {name} {number}."),
        Wording("Give the area mean of {name}.", "Area mean of {name}: {number}."),
        Wording("How high is the {name} on average?", "On average, {name} is {number}."),
        Wording("How warm is it on average?", "It is {number} on average.", variables=("t2m",)),
        Wording("How strong is the wind on average?", "The wind averages {number}.", variables=("ws10",)),
    ),
    "maximum": (
        Wording("How high does the {name} get?", "The {name} reaches {number}."),
        Wording("What is the highest {name}?", "Highest {name} {number}."),
        Wording("What is the maximum {name}?", "Maximum {name}: {number}."),
        Wording("At what value does the {name} peak?", "The {name} peaks at {number}."),
    ),
    "minimum": (
        Wording("How low does the {name} get?", "The {name} drops to {number}."),
        Wording("What is the lowest {name}?", "Lowest {name} {number}."),
        Wording("What is the minimum {name}?", "Minimum {name}: {number}."),
        Wording("What is the smallest {name} anywhere?", "The smallest {name} is {number}."),
    ),
    "maximum_position": (
        Wording("Where is the {name} highest?", "The {name} is highest at {position}."),
        Wording("Where does the highest {name} lie?", "Highest {name} at {position}."),
        Wording("At which point does the {name} peak?", "Peak {name} at {position}."),
        Wording("Locate the maximum {name}.", "Maximum {name} lies at {position}."),
    ),
    "minimum_position": (
        Wording("Where is the {name} lowest?", "The {name} is lowest at {position}."),
        Wording("Where does the lowest {name} lie?", "Lowest {name} at {position}."),
        Wording("At which point is the {name} smallest?", "Smallest {name} at {position}."),
        Wording("Locate the minimum {name}.", "Minimum {name} lies at {position}."),
    ),
    "direction": (
        Wording(
            "Where does the wind come from?",
            "The wind comes from the {value}.",
            {"calm": "The wind is calm."},
        ),
        Wording("What is the wind direction?", "Wind from the {value}.", {"calm": "Wind calm."}),
        Wording(
            "From which direction does it blow?", "It blows from the {value}.", {"calm": "The air is calm."}
        ),
        Wording(
            "Which is the mean direction of the wind?",
            "Mean wind direction: {value}.",
        ),
    ),
    "change": (
        Wording("By how much does the {name} change?", "The {name} changes by {signed}."),
        Wording("How large is the change of {name}?", "Change of {name}: {signed}."),
        Wording("How far did the {name} go up or down?", "The {name} went {move}."),
        Wording("How much does the {name} differ from the start?", "Difference in {name}: {signed}."),
    ),
    "tendency": (
        Wording("Is the {name} rising or falling?", "The {name} is {value}."),
        Wording("What is the tendency of the {name}?", "Tendency of {name}: {value}."),
        Wording("How does the {name} develop?", "The {name} has been {value}."),
        Wording(
            "Does the {name} rise, fall or hold steady?",
            cases={
                "rising": "The {name} rises.",
                "falling": "The {name} falls.",
                "steady": "The {name} holds steady.",
            },
        ),
    ),
    "comparison": (
        Wording(
            "Is the {name} higher in the {first} or in the {second}?",
            "The {name} is higher in the {value}.",
            {"equal": "The {name} is equal in the {first} and {second}."},
        ),
        Wording(
            "Compare the {name} of the {first} and {second} halves.",
            "Higher {name} in the {value}.",
            {"equal": "Equal {name} in the {first} and {second}."},
        ),
        Wording(
            "Which half has the higher {name}, {first} or {second}?",
            "The {value} half has higher {name} on average.",
            {"equal": "Equal {name} in both halves, {first} and {second}."},
        ),
        Wording(
            "Is it warmer in the {first} or in the {second}?",
            "It is warmer in the {value}.",
            {"equal": "It is equally warm in the {first} and {second}."},
            variables=("t2m",),
        ),
        Wording(
            "Is it windier in the {first} or in the {second}?",
            "It is windier in the {value}.",
            {"equal": "It is equally windy in the {first} and {second}."},
            variables=("ws10",),
        ),
        Wording(
            "Is it wetter in the {first} or in the {second}?",
            "It is wetter in the {value}.",
            {"equal": "It is equally wet in the {first} and {second}."},
            variables=("tp",),
        ),
    ),
    "event": (
        Wording(
            "Does any cell have {event}?",
            cases={"yes": "Some cells have {event}.", "no": "No cell has {event}."},
        ),
        Wording("Any {event}?", cases={"yes": "There is {event}.", "no": "There is no {event}."}),
        Wording("Is there {event} anywhere?", cases={"yes": "Yes, {event}.", "no": "No {event}."}),
        Wording(
            "Does the {name} go {beyond} anywhere?",
            cases={"yes": "Yes, the {name} goes {beyond}.", "no": "No, the {name} never goes {beyond}."},
        ),
    ),
    "anomaly": (
        Wording("How far is the {name} from normal?", "The {name} is {signed} from normal."),
        Wording("What is the mean {name} anomaly?", "Mean {name} anomaly {signed}."),
        Wording("Give the departure of the {name} from its climatology.", "Departure of {name}: {signed}."),
        Wording("How does the {name} differ from climatology?", "The {name} differs by {signed}."),
    ),
    "anomaly_class": (
        Wording("Is the {name} above or below normal?", "The {name} is {value}."),
        Wording("Which class does the {name} anomaly fall in?", "Class of {name}: {value}."),
        Wording("How does the {name} compare with climatology?", "By climatology, {name} is {value}."),
        Wording("Is the {name} usual for the season?", "For the season, {name} is {value}."),
    ),
    "nino34": (
        Wording("How warm is the Niño 3.4 region relative to normal?", "The Niño 3.4 region is at {signed}."),
        Wording("What is the Niño 3.4 index?", "Niño 3.4 index {signed}."),
        Wording("Give the sea surface temperature anomaly of Niño 3.4.", "Niño 3.4 anomaly: {signed}."),
        Wording("What does the Niño 3.4 index amount to?", "The Niño 3.4 index is {signed}."),
    ),
    "enso": (
        Wording("In which state is the tropical Pacific?", "The tropical Pacific is in {value} state."),
        Wording("What is the ENSO state?", "ENSO state: {value}."),
        Wording("Is there El Niño, La Niña or neither?", "Conditions are {value}."),
        Wording("Which ENSO phase do the fields show?", "The ENSO phase is {value}."),
    ),
    "absent": (),  # its questions are those of the other kinds
}

# Which of these answers is used follows from the wording of the question. They do not repeat what was asked for: a
# frozen model that never spoke of chlorophyll denies plankton instead, which nobody asked about.
ABSENCES = (
    "The fields do not hold that.",
    "That is not given.",
    "Such data are not in these fields.",
    "That is not in these fields.",
)
# What other models may say. The name is never last: words cut short could otherwise turn one name into another
# ("precipitation rate").
NAMED_ABSENCES = (
    "The fields hold no {name} data.",
    "No {name} given.",
    "There is no {name} in these fields.",
    "The {name} is not in these fields.",
)


@dataclass(frozen=True)
class BulletinStyle:
    """How a bulletin reads.

    Args:
        prompt: With the slot {topics}, or none for an overview.
        wording: Index of the wording of each fact.
        joint: Between the facts.
    """

    prompt: str
    wording: int
    joint: str = " "


BULLETINS = (
    BulletinStyle("Describe {topics}.", 0),
    BulletinStyle("Write a bulletin: {topics}.", 1),
    BulletinStyle("List {topics}.", 1, "; "),
    BulletinStyle("Report in sentences on {topics}.", 0),
)
OVERVIEWS = (
    BulletinStyle("Describe the weather.", 0),
    BulletinStyle("Summarize the fields.", 1),
    BulletinStyle("Write a short overview.", 1, "; "),
)
OVERVIEW_KINDS = ("mean", "direction", "nino34", "enso")


def question_answer(fact: Fact, rng: np.random.Generator) -> tuple[str, str]:
    """A question that a fact answers, in one of several wordings.

    Args:
        fact: Extracted or spoken.
        rng: Chooses the wording.

    Returns:
        (prompt, answer); the answer is a function of the prompt and the spoken fact.

    Raises:
        UsageError: The kind has no words.
    """
    return phrase(fact, _choose(_wordings(fact), rng))


def phrase(fact: Fact, wording: Wording) -> tuple[str, str]:
    """A fact in one given wording.

    Args:
        fact: Extracted or spoken.
        wording: One of ``WORDINGS[fact.kind]`` that suits the variable.

    Returns:
        (prompt, answer).
    """
    template = wording.cases.get(_value(fact), wording.answer)
    return _sentence(wording.question, fact), _sentence(template, fact)


def answer_to(prompt: str, fact: Fact) -> str | None:
    """The answer that a question calls for, in the wording that goes with it.

    Args:
        prompt: A question in one of our wordings, with nothing around it.
        fact: Extracted or spoken; of the kind "absent" where the fields do not hold what is asked for.

    Returns:
        The answer; None if the prompt does not ask for this fact.
    """
    if fact.kind == "absent":
        for question in askable(fact.variable):
            for index in _suitable(question):
                if _sentence(WORDINGS[question.kind][index].question, question) == prompt:
                    return _sentence(ABSENCES[index % len(ABSENCES)], fact)
        return None
    answers = (phrase(fact, wording) for wording in _wordings(fact))
    return next((answer for question, answer in answers if question == prompt), None)


def bulletin(facts: Sequence[Fact], rng: np.random.Generator) -> tuple[str, str]:
    """Several facts in one text, in an order that the prompt states.

    Args:
        facts: Of one window, each key once, at least one.
        rng: Chooses order and wording.

    Returns:
        (prompt, text); the text is a function of the prompt and the spoken facts.

    Raises:
        UsageError: There are no facts, or a kind has no words.
    """
    if not facts:
        raise UsageError(
            "facts",
            expected="at least one fact",
            received="none",
            remedy="Extract facts from a window that has values.",
        )
    style = _choose(BULLETINS, rng)
    ordered = [facts[index] for index in rng.permutation(len(facts))]
    topics = ", ".join(map(topic_of, ordered))
    return style.prompt.format(topics=topics), _text(ordered, style)


def overview(facts: Sequence[Fact], rng: np.random.Generator) -> tuple[str, str] | None:
    """The headline facts of a window, in the order of ``OVERVIEW_KINDS``, for a prompt without topics.

    Args:
        facts: All facts of one window.
        rng: Chooses the wording.

    Returns:
        (prompt, text), the text a function of the prompt and the spoken facts; None where no headline fact is
        among them.
    """
    chosen = overview_facts(facts)
    if not chosen:
        return None
    style = _choose(OVERVIEWS, rng)
    return style.prompt, _text(chosen, style)


def overview_facts(facts: Iterable[Fact]) -> list[Fact]:
    """Those of the facts that an overview states, in its order."""
    rank = {
        key: index for index, key in enumerate((k, v) for k in OVERVIEW_KINDS for v in FACT_KINDS[k].rules)
    }
    headlines = [fact for fact in facts if (fact.kind, fact.variable) in rank]
    return sorted(headlines, key=lambda fact: rank[fact.kind, fact.variable])


def overview_questions(variables: Iterable[str]) -> list[str]:
    """The questions that an overview answers, for a model that was taught questions only.

    Args:
        variables: Canonical names of what the fields hold.

    Returns:
        A question for each headline fact, in its first wording, in the order of ``OVERVIEW_KINDS``.
    """
    held = list(variables)
    subjects = [*held, "wd10"] if {"u10", "v10"} <= set(held) else held
    facts = overview_facts(fact for name in subjects for fact in askable(name, OVERVIEW_KINDS))
    return [_sentence(WORDINGS[fact.kind][0].question, fact) for fact in facts]


def abstention(
    variable: str, rng: np.random.Generator, *, kinds: Collection[str] | None = None
) -> tuple[str, str]:
    """A question about a variable that the fields do not hold, and the answer that says so.

    The question is worded as any other: nothing but the fields tells that it has no answer. The answer means what the
    question asks for, and is read back with it.

    Args:
        variable: Withheld from the fields, or never in them: a variable of ``FACT_KINDS["absent"]``.
        rng: Chooses kind and wording.
        kinds: Names of kinds to choose from; None for all. Leave out those that no other question is
            about, or a model learns that they have no answer.

    Returns:
        (prompt, answer).

    Raises:
        UsageError: No question can be asked about the variable.
    """
    facts = [fact for fact in askable(variable, kinds) if _suitable(fact)]
    if not facts:
        raise UsageError(
            "variable",
            expected="a variable that questions of the chosen kinds can be asked about",
            received=variable,
            remedy="Choose a variable of climafuse.facts.FACT_KINDS, or more kinds.",
        )
    kind = _choose(sorted({fact.kind for fact in facts}), rng)
    fact = _choose([fact for fact in facts if fact.kind == kind], rng)
    index = _choose(_suitable(fact), rng)
    answer = _sentence(ABSENCES[index % len(ABSENCES)], Fact("absent", variable, "absent"))
    return _sentence(WORDINGS[kind][index].question, fact), answer


# Questions that can be asked about anything that is a number on a map.
_GENERIC_KINDS = (
    "mean",
    "maximum",
    "minimum",
    "maximum_position",
    "minimum_position",
    "change",
    "tendency",
    "comparison",
)


def askable(variable: str, kinds: Collection[str] | None = None) -> list[Fact]:
    """Facts one could ask for, without their values: one for each kind and qualifier.

    Args:
        variable: Canonical name, known to the table of kinds or only by its name.
        kinds: Names of kinds to choose from; None for all.

    Returns:
        Facts with the value "", in the order of the table.
    """
    chosen = [
        name
        for name, kind in FACT_KINDS.items()
        if name != "absent"
        and (kinds is None or name in kinds)
        and (variable in kind.rules or (variable in UNSEEN_NAMES and name in _GENERIC_KINDS))
    ]
    facts: list[Fact] = []
    for name in chosen:
        qualifier = FACT_KINDS[name].qualifier
        if qualifier == "axis":
            facts += [Fact(name, variable, "", (("axis", axis),)) for axis in AXES]
        elif qualifier == "event":
            facts += [
                Fact(name, variable, "", (("event", e),)) for e in EVENTS if EVENTS[e].variable == variable
            ]
        else:
            facts.append(Fact(name, variable, ""))
    return facts


def _suitable(fact: Fact) -> list[int]:
    """Indices of the wordings that suit the variable of a fact."""
    wordings = WORDINGS[fact.kind]
    return [
        i for i, wording in enumerate(wordings) if not wording.variables or fact.variable in wording.variables
    ]


def _wordings(fact: Fact) -> list[Wording]:
    rule_of(fact)
    wordings = [WORDINGS[fact.kind][index] for index in _suitable(fact)]
    if not wordings:
        raise UsageError(
            "fact",
            expected="a kind with wordings",
            received=f"{fact.kind} of {fact.variable}",
            remedy="Use abstention() for what is absent; register wordings for a kind of your own.",
        )
    return wordings


def _text(facts: Sequence[Fact], style: BulletinStyle) -> str:
    answers = [phrase(fact, _wordings(fact)[style.wording % len(_wordings(fact))])[1] for fact in facts]
    if style.joint == " ":
        return " ".join(answers)
    return style.joint.join(answer.removesuffix(".") for answer in answers) + "."


def _choose(options: Sequence[_Option], rng: np.random.Generator) -> _Option:
    return options[int(rng.integers(len(options)))]


def _value(fact: Fact) -> str:
    value = spoken(fact).value if fact.value != "" else ""
    return value if isinstance(value, str) else ""


def _sentence(template: str, fact: Fact) -> str:
    text = _fill(template, fact)
    return text[:1].upper() + text[1:]


def topic_of(fact: Fact) -> str:
    """What a fact is about, in words, such as "place of highest temperature"."""
    return _fill(FACT_KINDS[fact.kind].topic, fact)


def _fill(template: str, fact: Fact) -> str:
    return _SLOT.sub(lambda match: SLOTS[match[1]](fact), template)


_SLOT = re.compile(r"\{(\w+)\}")


def _number(fact: Fact, sign: str = "") -> str:
    """Such as "-12 °C"; with sign "+", "+3 °C" for positive values."""
    value, rule = spoken(fact).value, rule_of(fact)
    assert isinstance(value, float)
    return f"{value:{sign if value else ''}.{rule.decimals}f} {rule.unit}"


def _move(fact: Fact) -> str:
    value, rule = spoken(fact).value, rule_of(fact)
    assert isinstance(value, float)
    return f"{'down' if value < 0 else 'up'} by {abs(value):.{rule.decimals}f} {rule.unit}"


def _place(fact: Fact) -> str:
    value, decimals = spoken(fact).value, position_decimals(fact.cell)
    assert isinstance(value, tuple)
    latitude, longitude = value
    while fact.cell is None and decimals and all(round(x, decimals - 1) == x for x in value):
        decimals -= 1
    east = longitude <= 180
    return (
        f"{abs(latitude):.{decimals}f}°{'S' if latitude < 0 else 'N'}, "
        f"{longitude if east else 360 - longitude:.{decimals}f}°{'E' if east else 'W'}"
    )


# Slot → its words for a fact. Slots that a question may hold do not read the value.
SLOTS: dict[str, Callable[[Fact], str]] = {
    "name": lambda fact: name_of(fact.variable),
    "first": lambda fact: AXES[fact.qualifier("axis")][0],
    "second": lambda fact: AXES[fact.qualifier("axis")][1],
    "event": lambda fact: EVENTS[fact.qualifier("event")].noun,
    "beyond": lambda fact: EVENTS[fact.qualifier("event")].beyond,
    "number": _number,
    "signed": lambda fact: _number(fact, "+"),
    "move": _move,
    "position": _place,
    "value": _value,
}
