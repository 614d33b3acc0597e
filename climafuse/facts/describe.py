"""From windows to climate-text pairs: texts that the fields themselves vouch for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from climafuse.data.pairs import Pair
from climafuse.data.window import Box, Window
from climafuse.errors import UsageError
from climafuse.facts.climatology import Climatology
from climafuse.facts.extract import EXTRACTORS, extract
from climafuse.facts.kinds import FACT_KINDS, Fact, select_kinds, sources
from climafuse.facts.phrasing import abstention, askable, bulletin, overview, overview_facts, question_answer
from climafuse.facts.unseen import UNTRAINED_NAMES

if TYPE_CHECKING:
    import xarray as xr

UNSEEN_SHARE = 0.5  # of abstentions, questions about a variable that the window never held
MASKED_SHARE = 0.25  # of the others, those where all variables are withheld, as over a place that is masked
LACKING_SHARE = 0.5  # of questions about a window that lacks a variable, those about what it lacks


def describe(
    windows: Iterable[tuple[int, Window]],
    *,
    seed: int = 0,
    kinds: Iterable[str] | None = None,
    climatology: Climatology | xr.Dataset | None = None,
    questions_per_window: int = 4,
    bulletins: float = 0.0,
    abstentions: float = 0.1,
    facts_per_bulletin: tuple[int, int] = (3, 5),
) -> Iterator[Pair]:
    """Texts about windows: question–answer pairs, bulletins, and questions that have no answer.

    A pure function of seed, sample number and window: windows can be described in any order, in parts, or
    again. Of each question the entry of ``kinds`` is drawn first, all alike, then one of its facts: kinds
    with many facts are not asked more often, and an entry named twice is asked twice as often.

    Args:
        windows: (sample number, window).
        seed: Of all choices.
        kinds: Kinds to speak of, as ``extract`` takes them ("mean", "mean/t2m"); None for all.
        climatology: For anomalies, as ``extract`` takes it.
        questions_per_window: Texts for each window, of any form.
        bulletins: Share of bulletins among them, one in two an overview; the rest are questions.
        abstentions: Share of questions among them that have no answer. In half of them the variable is
            withheld, or all variables are, as where the place is masked: the pair's ``withheld`` names the
            fields that must be hidden (``withhold``) wherever the pair is used. The others ask for a variable
            that the window never held, though never for one of ``UNTRAINED_NAMES``. What is withheld is withheld
            from all texts about a window, so that it is encoded once; as many of them as ask for it are about
            what is left, so that what is missing does not tell that there is no answer.
        facts_per_bulletin: Smallest and largest number of facts in a bulletin.

    Returns:
        Pairs, made one by one, that hold their exact facts. A window with nothing to speak of gives
        abstentions only, and none at all where no abstention is asked for.

    Raises:
        UsageError: A share is not in [0, 1], a number is not positive, or a kind is unknown.
    """
    entries = list(EXTRACTORS) if kinds is None else list(kinds)
    draws = [select_kinds([entry]) for entry in entries]
    fewest, most = facts_per_bulletin
    for argument, received, good, expected in (
        ("questions_per_window", questions_per_window, questions_per_window >= 1, "at least 1"),
        ("bulletins", bulletins, 0 <= bulletins <= 1, "a share from 0 to 1"),
        (
            "abstentions",
            abstentions,
            0 <= abstentions <= 1 - bulletins,
            "a share from 0 to 1 minus that of bulletins",
        ),
        (
            "facts_per_bulletin",
            facts_per_bulletin,
            1 <= fewest <= most,
            "two numbers, 1 <= smallest <= largest",
        ),
    ):
        if not good:
            raise UsageError(argument, expected=expected, received=received, remedy="Change the value.")
    if climatology is not None and not isinstance(climatology, Climatology):
        climatology = Climatology.from_dataset(climatology)

    return _describe(
        windows,
        seed,
        entries,
        draws,
        climatology,
        questions_per_window,
        bulletins,
        abstentions,
        facts_per_bulletin,
    )


def _describe(
    windows: Iterable[tuple[int, Window]],
    seed: int,
    entries: Sequence[str],
    draws: Sequence[frozenset[tuple[str, str]]],
    climatology: Climatology | None,
    questions_per_window: int,
    bulletins: float,
    abstentions: float,
    facts_per_bulletin: tuple[int, int],
) -> Iterator[Pair]:
    """The generator apart, so that ``describe`` refuses bad arguments when it is called."""
    fewest, most = facts_per_bulletin
    shares = _Shares.of(bulletins, abstentions)
    unseen: _Unseen = {}
    for sample, window in windows:
        rng = np.random.default_rng((seed, sample))
        told = extract(window, kinds=entries, climatology=climatology)
        hidden = _withheld(told, window, shares, rng)
        left = set(window.available()) - hidden
        facts = [fact for fact in told if not left.isdisjoint(sources(fact.variable))]
        groups = [[fact for fact in facts if (fact.kind, fact.variable) in draw] for draw in draws]
        groups = [group for group in groups if group]
        place = window_box(window)
        asked: list[Fact] = []
        for _ in range(questions_per_window):
            form = rng.random()
            text: _Text | None = None
            if facts and form < shares.bulletin:
                count = int(rng.integers(fewest, most + 1))
                text = _bulletin(facts, groups, count, rng)
            elif form < shares.bulletin + shares.unseen:
                text = _about_unseen(told, window, entries, unseen, rng)
            elif hidden and rng.random() < shares.lacking:
                text = _about_hidden(told, left, rng)
            if text is None and facts:
                fact = _draw(groups, asked, rng)
                asked.append(fact)
                text = (*question_answer(fact, rng), (fact,))
            if text is None and hidden:
                text = _about_hidden(told, left, rng)
            elif text is None and form < bulletins + abstentions:
                text = _about_unseen(told, window, entries, unseen, rng)
            if text is not None:
                prompt, answer, stated = text
                yield Pair(
                    times=(window.time[0], window.time[-1]),
                    place=place,
                    prompt=prompt,
                    text=answer,
                    facts=tuple(fact.to_dict() for fact in stated),
                    sample=sample,
                    withheld=tuple(name for name in window.variables if name in hidden),
                )


@dataclass(frozen=True)
class _Shares:
    """Of windows that are masked or lack a variable; of texts about the others that are of some form.

    ``lacking`` is the share of a window's other questions, if it lacks a variable, that ask for it.
    """

    masked_windows: float
    lacking_windows: float
    bulletin: float
    unseen: float
    lacking: float

    @classmethod
    def of(cls, bulletins: float, abstentions: float) -> _Shares:
        """Those that make bulletins and questions without an answer as many among all texts as is asked for."""
        withheld = abstentions * (1 - UNSEEN_SHARE)
        masked = withheld * MASKED_SHARE  # all texts about a masked window are questions without an answer
        others = 1 - masked
        bulletin, unseen = bulletins / others, abstentions * UNSEEN_SHARE / others
        rest = 1 - bulletin - unseen
        if not withheld:
            return cls(0.0, 0.0, bulletin, unseen, 0.0)
        about = (withheld - masked) / rest  # in windows, if all the rest were about what these lack
        lacking = min(about / LACKING_SHARE, others)
        return cls(masked, lacking, bulletin, unseen, about / lacking)


_Text = tuple[str, str, tuple[Fact, ...]]  # prompt, answer, facts


def _draw(groups: Sequence[Sequence[Fact]], used: Collection[Fact], rng: np.random.Generator) -> Fact:
    """First which group, all alike, then which of its facts: one not used yet, if any group has one."""
    order = rng.permutation(len(groups)).tolist()
    for index in order:
        fresh = [fact for fact in groups[index] if fact not in used]
        if fresh:
            return fresh[int(rng.integers(len(fresh)))]
    group = groups[order[0]]
    return group[int(rng.integers(len(group)))]


def _bulletin(
    facts: Sequence[Fact], groups: Sequence[Sequence[Fact]], count: int, rng: np.random.Generator
) -> _Text:
    """An overview or a bulletin on chosen topics, one as often as the other."""
    text = overview(facts, rng) if rng.random() < 0.5 else None
    if text is not None:
        return (*text, tuple(overview_facts(facts)))
    chosen: list[Fact] = []
    for _ in range(min(count, len(facts))):
        chosen.append(_draw(groups, chosen, rng))
    return (*bulletin(chosen, rng), tuple(chosen))


def _withheld(
    facts: Sequence[Fact], window: Window, shares: _Shares, rng: np.random.Generator
) -> frozenset[str]:
    """The fields to be hidden from all texts about a window: none, those of one variable, or all."""
    form = rng.random()
    variables = list(dict.fromkeys(fact.variable for fact in facts))
    if not variables or form >= shares.masked_windows + shares.lacking_windows:
        return frozenset()
    if form < shares.masked_windows:
        return frozenset(window.variables)
    return frozenset(sources(variables[int(rng.integers(len(variables)))])) & set(window.variables)


def _about_hidden(facts: Sequence[Fact], left: set[str], rng: np.random.Generator) -> _Text:
    """A question about a variable that is withheld: of a kind that would have an answer, were it not."""
    lost = [fact for fact in facts if left.isdisjoint(sources(fact.variable))]
    variables = list(dict.fromkeys(fact.variable for fact in lost))
    variable = variables[int(rng.integers(len(variables)))]
    return _without_answer(variable, {fact.kind for fact in lost if fact.variable == variable}, rng)


_Unseen = dict[
    tuple[frozenset[str], frozenset[str]], list[str]
]  # (variables held, kinds) -> others to ask for


def _about_unseen(
    facts: Sequence[Fact],
    window: Window,
    entries: Sequence[str],
    known: _Unseen,
    rng: np.random.Generator,
) -> _Text | None:
    """A question about a variable that the window never held; None where the kinds allow none.

    Only kinds that this window's other questions are about: another kind would give the answer away.
    """
    kinds = frozenset(fact.kind for fact in facts) or frozenset(e.partition("/")[0] for e in entries)
    held = frozenset(window.available())
    if (held, kinds) not in known:  # nearly every window holds the same
        known[held, kinds] = [
            name
            for name in FACT_KINDS["absent"].rules
            if name not in UNTRAINED_NAMES and held.isdisjoint(sources(name)) and askable(name, kinds)
        ]
    unseen = known[held, kinds]
    return _without_answer(unseen[int(rng.integers(len(unseen)))], kinds, rng) if unseen else None


def _without_answer(variable: str, kinds: Collection[str], rng: np.random.Generator) -> _Text:
    return (*abstention(variable, rng, kinds=kinds), (Fact("absent", variable, "absent"),))


def withhold(window: Window, variables: Iterable[str]) -> Window:
    """A window without some of its variables: they stay in place, as missing values.

    Args:
        window: The window; it is not changed.
        variables: Canonical names, such as ``Pair.withheld``; names it does not hold are passed over.

    Returns:
        A new window, or the same where nothing is withheld.
    """
    indices = [index for index, name in enumerate(window.variables) if name in set(variables)]
    if not indices:
        return window
    fields = window.fields.copy()
    fields[:, indices] = np.nan
    return replace(window, fields=fields)


def window_box(window: Window) -> Box:
    """The box that selects just the cells of a window: half a cell beyond its outermost centers."""
    south, north = _edges(window.latitude)
    south, north = max(south, -90.0), min(north, 90.0)
    west = float(window.longitude[0])
    # Unrolled from the western column: a window over Greenwich reads …, 359, 0, 1, …
    west, east = _edges(west + (window.longitude - west) % 360.0)
    height, width = min(north - south, 180.0), min(east - west, 360.0)
    return Box(_rounded((south + north) / 2), _rounded((west + east) / 2), _rounded(height), _rounded(width))


def _edges(centers: np.ndarray) -> tuple[float, float]:
    """Outer edges of a row of cells; a single cell is taken as 1e-2° wide."""
    if len(centers) == 1:
        return float(centers[0]) - 0.005, float(centers[0]) + 0.005
    first, last = float(centers[0]), float(centers[-1])
    return first - (float(centers[1]) - first) / 2, last + (last - float(centers[-2])) / 2


def _rounded(degrees: float) -> float:
    return round(degrees, 6)  # a tenth of a meter; files of pairs stay readable
