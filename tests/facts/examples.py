"""Facts of every kind, variable and qualifier, for the tests of words."""

from __future__ import annotations

from hypothesis import strategies as st

from climafuse.facts.kinds import AXES, CALM, EVENTS, FACT_KINDS, Fact
from climafuse.facts.phrasing import WORDINGS, Wording

KEYS = [
    (kind, variable, qualifiers)
    for kind, entry in FACT_KINDS.items()
    if kind != "absent"
    for variable in entry.rules
    for qualifiers in (
        [(("axis", axis),) for axis in AXES]
        if entry.qualifier == "axis"
        else [(("event", event),) for event in EVENTS if EVENTS[event].variable == variable]
        if entry.qualifier == "event"
        else [()]
    )
]


@st.composite
def facts(draw: st.DrawFn, keys: list[tuple] = KEYS) -> Fact:
    """An extracted fact of any value."""
    kind, variable, qualifiers = draw(st.sampled_from(keys))
    entry = FACT_KINDS[kind]
    if entry.form == "number":
        return Fact(kind, variable, draw(st.floats(-99999, 99999)), qualifiers)
    if entry.form == "direction":
        return Fact(kind, variable, draw(st.floats(0, 360, exclude_max=True) | st.just(CALM)), qualifiers)
    if entry.form == "position":
        position = draw(st.tuples(st.floats(-90, 90), st.floats(0, 360, exclude_max=True)))
        cell = draw(st.sampled_from([(1.0, 1.0), (0.25, 0.25), (0.5, 0.625), (3.75, 3.75), (0.05, 0.1)]))
        return Fact(kind, variable, position, qualifiers, cell)
    allowed = entry.values
    if entry.qualifier == "axis":
        allowed = (*AXES[dict(qualifiers)["axis"]], "equal")
    return Fact(kind, variable, draw(st.sampled_from(allowed)), qualifiers)


def wordings(fact: Fact) -> list[Wording]:
    """Those that suit the fact."""
    return [w for w in WORDINGS[fact.kind] if not w.variables or fact.variable in w.variables]
