"""Which tokens carry a fact. Oracle: by hand, and that any other value parts from the answer at one of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from climafuse.evaluation.value_tokens import value_tokens
from climafuse.facts import FACT_KINDS, SPOKEN_VARIABLES, Fact, parse
from climafuse.facts.phrasing import WORDINGS, phrase
from tests.model.build import make_model, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor(make_model())


def _words(processor, prompt, answer, fact):
    tokens, found = value_tokens(processor, prompt, answer, fact)
    assert tuple(tokens) == processor.encode(prompt, answer)[0]
    return "".join(processor.tokenizer.decode([tokens[place]]) for place in found).split()


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        # Digits one by one; the degree sign and the unit follow whatever the number is.
        ("What is the mean temperature?", "Mean temperature 12 °C.", ["12"]),
        ("What is the mean temperature?", "Mean temperature -8 °C.", ["-8"]),
        ("How high does the pressure get?", "The pressure reaches 1013 hPa.", ["1013"]),
        ("Where is the temperature highest?", "The temperature is highest at 45°N, 3°E.", ["45N", "3E"]),
        # Another class begins with other words, or goes on differently after the same ones.
        ("Does any cell have frost?", "No cell has frost.", ["No"]),
        ("Is there frost anywhere?", "Yes, frost.", ["Yes"]),
    ],
)
def test_words_that_carry_the_fact(processor, prompt, answer, expected):
    (fact,) = parse(answer, prompt)
    found = _words(processor, prompt, answer, fact)
    # The tokenizer of the tests has few words: those it spells are found up to where no other value spells so.
    assert all(one.startswith(other[:1]) for one, other in zip(found, expected, strict=False)), found
    if any(character.isdigit() for character in answer):
        digits = [c for c in "".join(found) if c.isdigit()]
        assert digits == [c for c in answer if c.isdigit()]
        assert "hPa" not in "".join(found)
        assert "temperature" not in "".join(found)


def _class_cases():
    for kind, wordings in WORDINGS.items():
        for wording in wordings:
            variable = next(iter(wording.variables or FACT_KINDS[kind].rules))
            qualifiers = {"comparison": (("axis", "north-south"),), "event": (("event", "freezing"),)}.get(
                kind, ()
            )
            values = [v for v in FACT_KINDS[kind].values if kind != "comparison" or v not in ("west", "east")]
            if values:
                if kind == "event":
                    variable = "t2m"
                yield [Fact(kind, variable, value, qualifiers) for value in values], wording


@pytest.mark.parametrize(("facts", "wording"), list(_class_cases()))
def test_answers_with_another_class_part_at_a_token_that_carries_it(processor, facts, wording):
    told = [(fact, *phrase(fact, wording)) for fact in facts]
    for (one, prompt, text), (_, _, other) in pairwise([*told, told[0]]):
        tokens, found = value_tokens(processor, prompt, text, one)
        changed, _ = processor.encode(prompt, other)
        part = next(i for i, (a, b) in enumerate(zip(tokens, changed, strict=False)) if a != b)
        assert part in found


@pytest.mark.parametrize("variable", ["t2m", "msl", "tp"])
@pytest.mark.parametrize("kind", ["mean", "maximum", "change"])
@pytest.mark.sampled(3)
def test_numbers_with_another_digit_part_at_a_token_that_carries_it(processor, kind, variable):
    unit = 10.0 ** -SPOKEN_VARIABLES[variable].decimals
    value = 1013 * unit if variable == "msl" else 23 * unit
    for wording in WORDINGS[kind]:
        if wording.variables and variable not in wording.variables:
            continue
        prompt, text = phrase(Fact(kind, variable, value), wording)
        tokens, found = value_tokens(processor, prompt, text, Fact(kind, variable, round(value, 3)))
        for other in (value + unit, value + 10 * unit, -value):
            changed, _ = processor.encode(prompt, phrase(Fact(kind, variable, other), wording)[1])
            part = next(i for i, (a, b) in enumerate(zip(tokens, changed, strict=False)) if a != b)
            assert part in found


def test_one_fact_of_several(processor):
    prompt, text = "Describe the weather.", "The temperature averages 12 °C. The wind comes from the north."
    temperature, wind = parse(text)
    (tokens, first), (_, second) = (
        value_tokens(processor, prompt, text, fact) for fact in (temperature, wind)
    )
    assert max(first) < min(second)
    said = processor.tokenizer.decode([tokens[place] for place in first])
    assert [character for character in said if character.isdigit()] == ["1", "2"]


def test_without_a_fact_or_in_words_of_its_own_it_is_all_of_the_answer_but_its_end(processor):
    prompt, text = "What is the mean temperature?", "It is rather warm, say 12 degrees."
    tokens, start = processor.encode(prompt, text)
    everything = list(range(start, len(tokens) - 1))
    assert value_tokens(processor, prompt, text, None)[1] == everything
    assert value_tokens(processor, prompt, text, Fact("mean", "t2m", 12.0))[1] == everything
    absent = "There is no temperature in these fields."
    tokens, start = processor.encode(prompt, absent)
    found = value_tokens(processor, prompt, absent, Fact("absent", "t2m", "absent"))[1]
    assert found == list(range(start, len(tokens) - 1))


def test_the_labels_of_the_processor_are_where_the_tokens_are(processor):
    """Positions count from the beginning of the prompt, as in a batch of one text."""
    prompt, text = "What is the mean temperature?", "Mean temperature 12 °C."
    tokens, found = value_tokens(processor, prompt, text, Fact("mean", "t2m", 12.0))
    batch = processor(prompts=[prompt], answers=[text])
    assert batch["input_ids"][0].tolist() == tokens
    assert (batch["labels"][0, torch.tensor(found)] >= 0).all()
