"""The transcript: what was said is kept by the content of what was asked."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from climafuse.errors import OutputError, UsageError
from climafuse.evaluation import Ask, TextLikelihood, Transcript, asking
from tests.facts.windows import window


def field(value):
    return window({"t2m": np.full((2, 2), float(value))}, [0, 1], [5, 6])


class Echo:
    """Says the prompt and the first value; counts what it was asked."""

    def __init__(self):
        self.asked = []

    def answer(self, windows, prompts, *, index=None):
        self.asked += [
            (prompt, float(windows[i].fields.flat[0])) for prompt, i in zip(prompts, index, strict=True)
        ]
        return [f"{prompt} {windows[i].fields.flat[0]:g}" for prompt, i in zip(prompts, index, strict=True)]

    def score(self, windows, prompts, answers, *, index=None):
        self.asked += list(answers)
        return [
            SimpleNamespace(
                log_probabilities=np.full(3, -0.5),
                right=np.array([True, True, False]),
                num_bytes=np.int64(len(a)),
            )
            for a in answers
        ]


ASKS = [Ask(field(1), "b"), Ask(field(2), "a"), Ask(field(1), "b"), Ask(field(1), "a")]
SAID = ["b 1", "a 2", "b 1", "a 1"]


def test_answers_come_in_the_order_of_the_asks_and_what_is_alike_is_asked_once():
    model = Echo()
    assert Transcript().answers(model, ASKS) == SAID
    assert sorted(model.asked) == [("a", 1), ("a", 2), ("b", 1)]
    assert [prompt for prompt, _ in model.asked] == ["a", "a", "b"]  # alike prompts side by side


@pytest.fixture
def one_by_one(monkeypatch):
    """What was said is asked again only beside what was not; here, nothing is."""
    monkeypatch.setattr(asking, "_PORTION", 1)


@pytest.mark.parametrize(
    ("portion", "expected"),
    [(1, [("a", 1)]), (2, [("a", 2), ("a", 1), ("b", 1)]), (100, [("a", 2), ("a", 1), ("b", 1)])],
)
def test_a_file_remembers(tmp_path, portion, expected, monkeypatch):
    monkeypatch.setattr(asking, "_PORTION", portion)
    path = tmp_path / "new" / "model.jsonl"
    Transcript(path, {"weights": 1}).answers(Echo(), ASKS[:2])
    model = Echo()
    assert Transcript(path, {"weights": 1}).answers(model, ASKS) == SAID
    assert model.asked == expected
    again = Echo()
    assert Transcript(path, {"weights": 1}).answers(again, ASKS) == SAID
    assert not again.asked


def test_of_another_model_nothing_is_remembered_and_nothing_is_lost(tmp_path):
    path = tmp_path / "model.jsonl"
    versions = {"climafuse": "1", "torch": "2"}
    one = Transcript(path, {"weights": 1, "versions": versions})
    one.answers(Echo(), ASKS)
    assert one.path.parent == tmp_path
    before = one.path.read_bytes()
    model = Echo()
    other = Transcript(path, {"weights": 1, "versions": versions | {"climafuse": "not installed"}})
    assert other.answers(model, ASKS) == SAID
    assert len(model.asked) == 3
    assert one.path.read_bytes() == before
    assert other.unused == {one.path: "climafuse 1, now not installed"}
    again, model = Transcript(path, {"weights": 1, "versions": versions}), Echo()
    assert again.answers(model, ASKS) == SAID
    assert not model.asked
    assert again.unused == {other.path: "climafuse not installed, now 1"}
    copy = tmp_path / "model-copy.jsonl"
    copy.write_bytes(again.path.read_bytes())
    assert Transcript(path, {"weights": 1, "versions": versions}).unused[copy] == "a copy of what is used"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"identity": 3}', b"\xff", b"[" * 100_000, b"{" * 100_000]
)
def test_what_lies_beside_may_hold_anything(tmp_path, content):
    (tmp_path / "model.jsonl").write_bytes(content + b"\n")
    (tmp_path / "model-link.jsonl").symlink_to(tmp_path / "model.jsonl")
    (tmp_path / "model-folder.jsonl").mkdir()
    (tmp_path / "models.txt").touch()
    found = Transcript(tmp_path / "model.jsonl", {"weights": 1})
    assert found.answers(Echo(), ASKS) == SAID
    assert sorted(path.name for path in found.unused) == [
        "model-folder.jsonl",
        "model-link.jsonl",
        "model.jsonl",
    ]
    assert set(found.unused.values()) == {"nothing tells what was asked"}
    assert (tmp_path / "model.jsonl").read_bytes() == content + b"\n"


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_cut_off_is_asked_anew(tmp_path, cut):
    path = tmp_path / "model.jsonl"
    transcript = Transcript(path, {})
    transcript.answers(Echo(), ASKS)
    transcript.path.write_bytes(transcript.path.read_bytes()[:-cut])
    model = Echo()
    assert Transcript(path, {}).answers(model, ASKS) == SAID
    assert len(model.asked) == 1
    assert all(json.loads(line) for line in transcript.path.read_text(encoding="utf-8").splitlines())
    again = Echo()
    Transcript(path, {}).answers(again, ASKS)
    assert not again.asked


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe", b"[]", b'["key"]', b'["key", 3]', b'["key", [1, 2]]', b'[1, "words"]', b"{", b"null"],
)
def test_what_comes_after_a_damaged_line_is_asked_anew(tmp_path, damage):
    path = tmp_path / "model.jsonl"
    transcript = Transcript(path, {})
    transcript.answers(Echo(), ASKS)
    lines = transcript.path.read_bytes().split(b"\n")
    lines[2] = damage  # of three answers the second
    transcript.path.write_bytes(b"\n".join(lines))
    model = Echo()
    assert Transcript(path, {}).answers(model, ASKS) == SAID
    assert len(model.asked) == 2
    again = Echo()
    assert Transcript(path, {}).answers(again, ASKS) == SAID
    assert not again.asked


@pytest.mark.usefixtures("one_by_one")
def test_a_full_disk_is_told_and_what_was_kept_before_is_there(tmp_path, monkeypatch):
    path = tmp_path / "model.jsonl"
    transcript = Transcript(path, {})
    transcript.answers(Echo(), ASKS[:1])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", full)
        with pytest.raises(OutputError, match="No space left on device"):
            transcript.answers(Echo(), ASKS)
    model = Echo()
    assert Transcript(path, {}).answers(model, ASKS) == SAID
    assert len(model.asked) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"fields": np.full((1, 1, 2, 2), 1.5, np.float32)},
        {"latitude": np.array([0.0, 2.0])},
        {"longitude": np.array([5.0, 7.0])},
        {"time": np.array(["2020-01-01"], "datetime64[s]")},
        {"variables": ("d2m",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_window_counts(change):
    transcript, model = Transcript(), Echo()
    other = dataclasses.replace(field(1), **change)
    transcript.answers(model, [Ask(field(1), "a"), Ask(other, "a")])
    assert len(model.asked) == 2


def test_missing_values_are_alike():
    model = Echo()
    Transcript().answers(model, [Ask(field(np.nan), "a"), Ask(field(np.nan), "a")])
    assert len(model.asked) == 1


def test_what_a_model_is_told_of_a_prompt_counts(tmp_path):
    """The same words that mean another thing, to one that answers from facts, are another question."""
    mean, maximum = ("mean", "t2m", ()), ("maximum", "t2m", ())
    asks = [
        Ask(field(1), "a"),
        Ask(field(1), "a", subject=(mean,)),
        Ask(field(1), "a", subject=(mean, maximum)),
    ]
    for number, ask in enumerate(asks):
        model = Echo()
        assert Transcript(tmp_path / "t.jsonl", {}).answers(model, [ask]) == ["a 1"]
        assert len(model.asked) == 1, number
    again = Echo()
    for ask in asks:
        Transcript(tmp_path / "t.jsonl", {}).answers(again, [ask])
    assert not again.asked


def test_likelihoods_add_up(tmp_path):
    asks = [Ask(field(1), "a", "yes"), Ask(field(1), "a", "never")]
    transcript = Transcript(tmp_path / "t.jsonl", {})
    model = Echo()
    transcript.answers(model, asks)  # an answer is no score
    found = transcript.likelihoods(model, asks)
    assert sum(found, TextLikelihood()) == TextLikelihood(3.0, 6, 4, 8)
    again = Echo()
    assert Transcript(tmp_path / "t.jsonl", {}).likelihoods(again, asks) == found
    assert not again.asked


class Together(Echo):
    """Says what it was asked together with, as rounding may; stops after some calls."""

    def __init__(self, calls=100):
        super().__init__()
        self.calls = calls

    def answer(self, windows, prompts, *, index=None):
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.asked += prompts
        return [f"{prompts[0]} to {prompts[-1]}"] * len(prompts)


MANY = [Ask(field(number % 3), f"{number // 2:03}") for number in range(600)]  # of these no two alike


@pytest.mark.parametrize("seconds", [0, 1e-4, 100])
@pytest.mark.parametrize("calls", range(6))
@pytest.mark.sampled(4)
def test_what_is_asked_together_is_a_matter_of_neither_speed_nor_interruption(
    tmp_path, calls, seconds, monkeypatch
):
    clock = itertools.count(step=seconds)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    expected = Transcript().answers(Together(), MANY)
    assert len(set(expected)) == math.ceil(600 / asking._PORTION)
    path = tmp_path / "model.jsonl"
    stopped = Together(calls)
    with contextlib.suppress(KeyboardInterrupt):
        Transcript(path).answers(stopped, MANY)
    again = Together()
    assert Transcript(path).answers(again, MANY) == expected
    assert len(stopped.asked) + len(again.asked) == 600
    # Cut off within a portion, or where something was asked for another reason before.
    file = Transcript(path).path
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    assert Transcript(path).answers(Together(), MANY) == expected
    other = tmp_path / "other.jsonl"
    fewer = Transcript().answers(Together(), MANY[5::7])
    for _ in range(2):
        assert Transcript(other).answers(Together(), MANY[5::7]) == fewer
        assert Transcript(other).answers(Together(), MANY) == expected


def test_it_is_told_how_far_it_is_after_each_portion():
    told = []
    Transcript().answers(Together(), MANY, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 600) for done in (*range(0, 600, asking._PORTION), 600)]


@pytest.mark.parametrize(
    ("given", "received"),
    [
        (["a"], "1 of them"),
        (["a", None], "None"),
        (["a", 3], "3"),
        (None, "None"),
        ("ab", "'ab'"),
        (["a", "\ud800"], "ud800"),
    ],
)
def test_a_model_that_gives_no_answers_is_refused(given, received):
    model = SimpleNamespace(answer=lambda windows, prompts, *, index=None: given)
    with pytest.raises(UsageError, match="expected 2 answers") as caught:
        Transcript().answers(model, [Ask(field(1), "a"), Ask(field(1), "b")])
    assert received in caught.value.received


@pytest.mark.usefixtures("one_by_one")
def test_progress_counts_what_was_said_before(tmp_path):
    told = []
    Transcript(tmp_path / "t.jsonl", {}).answers(Echo(), ASKS[:1])
    Transcript(tmp_path / "t.jsonl", {}).answers(
        Echo(), ASKS, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
