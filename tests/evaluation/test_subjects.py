"""What questions ask for: declared, or read from their words."""

from __future__ import annotations

import itertools

import pytest

from climafuse.evaluation.subjects import Subjects

MEAN, HIGHEST = ("mean", "t2m", ()), ("maximum", "t2m", ())
ABSENT = ("absent", "t2m", ())
OWN = "How warm is it around here?"


def test_our_own_words_need_no_declaration():
    subjects = Subjects()
    assert subjects["What is the mean temperature?"] == (MEAN,)
    assert subjects["What is the mean sea surface temperature anomaly?"] == (("anomaly", "sst", ()),)
    # Known by name only; of names within names the longest.
    assert subjects["How high does the wave height get?"] == (("absent", "swh", ()),)
    assert subjects["Tell me of surface pressure."] == (("absent", "sp", ()),)
    assert subjects["Who are you?"] == ()


@pytest.mark.parametrize("order", list(itertools.permutations([MEAN, HIGHEST, ABSENT])))
def test_the_same_words_may_ask_for_several_things(order):
    subjects = Subjects()
    assert subjects[OWN] == ()
    for key in order:
        subjects.declare(OWN, key)
    assert subjects[OWN] == (HIGHEST, MEAN)  # whatever the order; that one is absent, is an answer


def test_what_is_declared_counts_before_the_words():
    asked = "What is the mean temperature?"
    assert Subjects([(asked, HIGHEST)])[asked] == (HIGHEST,)
    assert Subjects([(asked, ABSENT)])[asked] == (MEAN,)
    assert Subjects([(OWN, ABSENT)])[OWN] == (ABSENT,)
