"""Label thinning: on texts whose every token can be counted by hand."""

from __future__ import annotations

import pytest
import torch

from climafuse.model.objective import IGNORED
from climafuse.training import thinning
from climafuse.training.thinning import LabelThinning
from tests.model.build import make_model, make_processor

# Prompt 1 2; answers "10 11 number 12". The number is 20 or 21, twice each; after prompt 1 3 comes a text
# that was seen only once; after prompt 1 4 always the same.
TWENTY, TWENTY_ONE = (1, 2, 10, 11, 20, 12), (1, 2, 10, 11, 21, 12)
ONCE, ALWAYS = (1, 3, 10, 11, 20, 12), (1, 4, 10, 12)
TEXTS = [TWENTY, TWENTY, TWENTY_ONE, TWENTY_ONE, ONCE, ALWAYS, ALWAYS, ALWAYS]
PAD = 0


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch):
    """One text of eight is not rare here."""
    monkeypatch.setattr(thinning, "RARE", 0.0)


def _thinning(kept=0.0, seed=0):
    return LabelThinning([(text, 2) for text in TEXTS], kept=kept, seed=seed)


def _labels(thinning, rows, samples, *, length=6):
    """Places that keep their label, of each row."""
    ids = torch.full((len(rows), length), PAD)
    labels = torch.full_like(ids, IGNORED)
    for row, text in enumerate(rows):
        ids[row, : len(text)] = torch.tensor(text)
        labels[row, 2 : len(text)] = ids[row, 2 : len(text)]
    before = labels.clone()
    thinning.apply(labels, ids, samples)
    kept = labels != IGNORED
    assert torch.equal(labels[kept], before[kept])  # a label is kept or left out, never another
    return [row.nonzero().squeeze(1).tolist() for row in kept]


def test_what_words_do_not_decide_is_always_kept():
    rows = [TWENTY, TWENTY_ONE, ONCE]
    # After 1 2 10 11 came two numbers: open. After the number came 12, each time and twice: decided. Seen
    # once, nothing is known to be decided.
    assert _labels(_thinning(), rows, [0, 1, 2]) == [[4], [4], [2, 3, 4, 5]]


def test_what_is_said_often_keeps_the_share_and_what_is_said_rarely_all(monkeypatch):
    # Texts begin 1 2 10 11 20 twice, 1 2 10 11 21 twice, 1 3 10 once and 1 4 10 three times; the median of the eight
    # texts is 2. Nothing is left of what is decided, but a first label, unless it is rare.
    assert _labels(_thinning(), [TWENTY, ALWAYS], [0, 1]) == [[4], [2]]
    monkeypatch.setattr(thinning, "RARE", 1.0)
    assert _labels(_thinning(), [TWENTY, ALWAYS], [0, 1]) == [[2, 3, 4, 5], [2]]
    monkeypatch.setattr(thinning, "RARE", 1.5)
    assert _labels(_thinning(), [TWENTY, ALWAYS], [0, 1]) == [[2, 3, 4, 5], [2, 3]]


def test_of_many_questions_none_is_rare_because_there_are_many(monkeypatch):
    monkeypatch.undo()  # the share that is used
    texts = [((100 + question, 2, 10, number, 12), 2) for question in range(300) for number in (20, 21)] * 25
    decided = LabelThinning(texts, kept=0.0, seed=0)
    assert _labels(decided, [(100, 2, 10, 20, 12), (399, 2, 10, 21, 12)], [0, 1]) == [[3], [3]]


def test_all_are_kept_where_all_are_to_be_kept():
    assert _labels(_thinning(kept=1.0), [TWENTY, ALWAYS], [0, 1]) == [[2, 3, 4, 5], [2, 3]]


def test_a_text_that_was_not_counted_keeps_all_labels():
    assert _labels(_thinning(), [(1, 2, 10, 11, 22, 12)], [0]) == [[2, 3, 4, 5]]


def test_the_share_is_kept():
    """Of three decided labels (2, 3 and 5) in each of 2000 samples a quarter: 1500 ± 4 standard deviations."""
    rows = _labels(_thinning(kept=0.25), [TWENTY] * 2000, list(range(2000)))
    assert all(4 in row for row in rows)
    assert sum(len(row) - 1 for row in rows) == pytest.approx(0.25 * 3 * 2000, abs=4 * (6000 * 3 / 16) ** 0.5)


def test_which_are_kept_follows_from_sample_text_and_seed_alone():
    thinning = _thinning(kept=0.5)
    rows, samples = [TWENTY, TWENTY_ONE, ONCE, TWENTY], [5, 5, 7, 9]
    together = _labels(thinning, rows, samples)
    alone = [_labels(thinning, [row], [n], length=9)[0] for row, n in zip(rows, samples, strict=True)]
    assert together == alone
    assert together == _labels(thinning, rows, samples)
    assert together[::-1] == _labels(thinning, rows[::-1], samples[::-1])
    assert together == _labels(_thinning(kept=0.5), rows, samples)
    many = list(range(40))
    one, other = (_labels(_thinning(kept=0.5, seed=seed), [TWENTY] * 40, many) for seed in (0, 1))
    assert one != other
    assert len({tuple(row) for row in one}) > 1  # differs from sample to sample


def test_counts_matter_not_the_order_of_texts():
    backwards = LabelThinning([(text, 2) for text in TEXTS[::-1]], kept=0.5, seed=0)
    rows, samples = [TWENTY, TWENTY_ONE, ONCE, ALWAYS], [0, 1, 2, 3]
    assert _labels(backwards, rows, samples) == _labels(_thinning(kept=0.5), rows, samples)


def test_what_has_no_answer_is_learned_word_for_word_though_it_is_rare(monkeypatch):
    """One question in hundreds has no answer; what is told often is left to the tokens that fields decide."""
    monkeypatch.undo()  # the share that is used
    processor = make_processor(make_model())
    prompt = "What is the mean temperature?"
    absent = (prompt, "No temperature given.")
    told = [(prompt, f"Mean temperature {number} °C.") for number in range(10) for _ in range(40)]
    texts = [absent, absent, *told]
    encoded = [processor.encode(*text) for text in texts]
    batch = processor(prompts=[prompt] * len(texts), answers=[answer for _, answer in texts])
    whole = (batch["labels"] != IGNORED).sum(1)
    LabelThinning(encoded, kept=0.0, seed=0).apply(batch["labels"], batch["input_ids"], range(len(texts)))
    kept = (batch["labels"] != IGNORED).sum(1)
    assert kept[:2].tolist() == whole[:2].tolist()
    assert set(kept[2:].tolist()) == {2}  # "Mean" instead of "No", and the number


def test_in_words_it_is_the_number_that_is_kept():
    processor = make_processor(make_model())
    prompt = "What is the mean temperature?"
    answers = ["It is 5 °C.", "It is 5 °C.", "It is 7 °C.", "It is 7 °C."]
    thinning = LabelThinning([processor.encode(prompt, answer) for answer in answers], kept=0.0, seed=0)
    batch = processor(prompts=[prompt] * 4, answers=answers)
    thinning.apply(batch["labels"], batch["input_ids"], range(4))
    kept = [processor.tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]
    assert [text.strip() for text in kept] == ["5", "5", "7", "7"]
