"""Facts that fields vouch for: extracted, put into words, read back from words, and scored.

``kinds.py`` is the one table of what is said and how close it must be. Everything here is numpy; nothing
knows of a model.
"""

from __future__ import annotations

from climafuse.facts.check import check_facts, compare, fact_value
from climafuse.facts.climatology import Climatology
from climafuse.facts.describe import describe, window_box, withhold
from climafuse.facts.extract import extract
from climafuse.facts.kinds import (
    EVENTS,
    FACT_KINDS,
    SPOKEN_VARIABLES,
    Event,
    Fact,
    FactKind,
    Rule,
    SpokenVariable,
    agrees,
    error,
    rule_of,
    sources,
    spoken,
)
from climafuse.facts.parse import asked, parse
from climafuse.facts.phrasing import (
    Wording,
    abstention,
    answer_to,
    bulletin,
    overview,
    question_answer,
    topic_of,
)
from climafuse.facts.register import register_event, register_kind, register_variable
from climafuse.facts.score import Score, Statistic, Tally, metrics, score, statistic

__all__ = [
    "EVENTS",
    "FACT_KINDS",
    "SPOKEN_VARIABLES",
    "Climatology",
    "Event",
    "Fact",
    "FactKind",
    "Rule",
    "Score",
    "SpokenVariable",
    "Statistic",
    "Tally",
    "Wording",
    "abstention",
    "agrees",
    "answer_to",
    "asked",
    "bulletin",
    "check_facts",
    "compare",
    "describe",
    "error",
    "extract",
    "fact_value",
    "metrics",
    "overview",
    "parse",
    "question_answer",
    "register_event",
    "register_kind",
    "register_variable",
    "rule_of",
    "score",
    "sources",
    "spoken",
    "statistic",
    "topic_of",
    "window_box",
    "withhold",
]
