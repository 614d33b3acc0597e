"""The verdict: what passes, what fails, and what was not measured."""

from __future__ import annotations

import pytest

from climafuse.evaluation import Difference, verdict
from climafuse.evaluation.verdict import CHECKS, MARGIN

ALL = {check.name: Difference(0.5, (0.4, 0.6), 0.001) for check in CHECKS}


def test_all_differences_beyond_zero():
    found = verdict(ALL)
    assert found["grounded"]
    assert all(row["passed"] for row in found["checks"])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: " - ".join(check.name))
def test_one_that_is_not_is_enough(check):
    found = verdict({**ALL, check.name: Difference(0.2, (-0.01, 0.4), 0.06)})
    assert not found["grounded"]
    failed = [row for row in found["checks"] if not row["passed"]]
    assert [row["name"] for row in failed] == [" - ".join(check.name)]
    assert failed[0]["meaning"] == check.failure


@pytest.mark.parametrize(("value", "grounded"), [(MARGIN, True), (MARGIN - 1e-9, False), (-0.5, False)])
def test_without_an_interval_the_difference_must_be_large(value, grounded):
    found = verdict({CHECKS[0].name: Difference(value)})
    assert found["grounded"] == grounded
    assert found["checks"][0]["limit"] == MARGIN


def test_what_was_not_measured_neither_passes_nor_fails():
    found = verdict({CHECKS[0].name: Difference(0.5), CHECKS[1].name: Difference(None)})
    assert found["grounded"]
    assert [row["passed"] for row in found["checks"]] == [True, *[None] * (len(CHECKS) - 1)]


def test_nothing_measured_is_nothing_shown():
    assert not verdict({})["grounded"]
