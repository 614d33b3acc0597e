"""Answers to many prompts at once. Oracle: `generate` of transformers, all in one batch or one by one."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from climafuse.backbones import LoadedBackbone
from climafuse.errors import ModelInputError
from climafuse.model import ClimateTextForCausalLM, greedy
from climafuse.model.generation import end_tokens, is_plain_greedy
from climafuse.model.greedy import decodes_greedily
from climafuse.model.inference import Reader
from tests.model.build import ENCODER, STD, climate_of, make_model, make_processor, random_window, statistics
from tests.tiny import in_every_architecture, tiny_tokenizer

QUESTIONS = (
    "Wind?",
    "What is the mean temperature?",
    "What is the mean pressure?",
    "Is it warmer in the north than in the south of the box, and by how much is it?",
    "What is the wind speed and direction over there?",
)
# Each question about several windows, in no order; one pair twice.
ASKED = [*((number % 5, number % 4) for number in range(20)), (0, 0)]
# Means of noise are much alike: each window has a level of its own.
LEVELS = (
    np.array([[0, 0, 0], [3, -1, 2], [-2, 3, 4], [4, 2, -4]])[:, :, None, None] * np.array(STD)[:, None, None]
)
WINDOWS = [
    replace(random_window(seed), fields=(random_window(seed).fields + level).astype(np.float32))
    for seed, level in enumerate(LEVELS)
]


def make_reader(architecture: str = "llama", *, new: int = 7, **options: Any) -> Reader:
    model = make_model(architecture, **({"sites": "output", "gates": 3.0} | options))
    model.generation_config.eos_token_id = None
    return Reader(model, make_processor(model), new)


def ask(reader: Reader, **options: Any) -> list[str]:
    prompts = [QUESTIONS[question] for question, _ in ASKED]
    return reader.answer(WINDOWS, prompts, index=[window for _, window in ASKED], **options)


def by_generate(reader: Reader) -> list[str]:
    """All in one batch, as `answer` was once."""
    prompts = [QUESTIONS[question] for question, _ in ASKED]
    batch = reader.processor(WINDOWS, prompts, climate_index=[window for _, window in ASKED])
    generated = reader.model.generate(**batch, max_new_tokens=reader.max_new_tokens, do_sample=False)
    return reader.processor.decode_answers(generated, batch["input_ids"].shape[1])


def passes(model: ClimateTextForCausalLM) -> list[int]:
    """Will hold how many tokens each pass through the first block had."""
    tokens: list[int] = []
    model.backbone.get_input_embeddings().register_forward_hook(
        lambda module, args, output: tokens.append(args[0].numel())
    )
    return tokens


@pytest.mark.parametrize("fusion", ["cross_attention", "gated_addition"])
@in_every_architecture
def test_words_are_those_of_generate(architecture: str, fusion: str) -> None:
    model = make_reader(architecture, fusion=fusion).model
    assert decodes_greedily(model)
    processor = make_processor(model)
    rows = [window for _, window in ASKED]
    prompts = [QUESTIONS[question] for question, _ in ASKED]
    batch = processor(WINDOWS, prompts, climate_index=rows)
    generated = model.generate(**batch, max_new_tokens=7, do_sample=False)
    with torch.no_grad():
        climate = model.encode_climate(**climate_of(dict(batch)))
    texts = [processor.encode(prompt, None)[0] for prompt in prompts]
    words = greedy.greedy_words(model, texts, climate, rows, max_new_tokens=7)
    assert words == generated[:, -7:].tolist()
    # Window and prompt both count: else anything could be mixed up.
    for part in (0, 1):
        others: dict[int, set[tuple[int, ...]]] = {pair[part]: set() for pair in ASKED}
        for pair, answer in zip(ASKED, words, strict=True):
            others[pair[part]].add(tuple(answer))
        assert max(map(len, others.values())) > 1


@functools.cache
def answered(architecture: str) -> tuple[Reader, list[str]]:
    """A reader, and what it says where everything fits into memory."""
    reader = make_reader(architecture)
    return reader, ask(reader)


@pytest.mark.parametrize("architecture", [pytest.param("gpt2", marks=pytest.mark.slow), "mistral"])
@pytest.mark.parametrize(
    "limits",
    [{"_ANSWERS": 7, "_HEAD": 2}, {"_PROMPTS": 2}, {"_CACHE": 1}, {"_CACHE": 60_000, "PASS": 1}],
    ids=str,
)
def test_words_do_not_depend_on_how_many_are_in_memory(
    architecture: str, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, expected = answered(architecture)
    for name, value in limits.items():
        monkeypatch.setattr(greedy, name, value)
    assert ask(reader) == expected
    monkeypatch.setattr("climafuse.model.inference._WINDOWS", 2)
    monkeypatch.setattr("climafuse.model.inference._TOKENS", 1)
    assert ask(reader) == expected


def test_a_cache_that_is_too_large_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above proves nothing."""
    reader = make_reader()
    tokens = passes(reader.model)
    ask(reader)
    together = len(tokens)
    tokens.clear()
    monkeypatch.setattr(greedy, "_CACHE", 1)
    ask(reader)
    assert len(tokens) > 2 * together


def test_an_answer_ends_where_generate_ends_it() -> None:
    reader = make_reader(new=9)
    said = reader.model.generate(
        **reader.processor([*WINDOWS, WINDOWS[0]], QUESTIONS), max_new_tokens=9, do_sample=False
    )[:, -9:]
    # Tokens that some say soon, some late, some never.
    reader.model.generation_config.eos_token_id = [int(said[0, 1]), int(said[3, 5])]
    answers = ask(reader)
    assert answers == by_generate(reader)
    lengths = {len(reader.processor.tokenizer(text, add_special_tokens=False).input_ids) for text in answers}
    assert len(lengths) > 2


def test_what_is_alike_is_computed_once() -> None:
    reader = make_reader(gates=0.0)  # the climate changes nothing: all answers to a prompt are alike
    reader.answer(WINDOWS[:1], QUESTIONS[:1])  # what is learned of a backbone is learned now
    encoded: list[int] = []
    reader.model.encoder.register_forward_hook(lambda module, args, output: encoded.append(len(args[0])))
    tokens = passes(reader.model)
    reader.answer(WINDOWS, [QUESTIONS[1]] * 4)
    length = len(reader.processor.encode(QUESTIONS[1], None)[0])
    through_blocks = [count for count in tokens if count != 4]  # the head's calls have one place an answer
    assert through_blocks == [length] + [1] * 6
    assert encoded == [4]


def test_progress_counts_what_is_computed() -> None:
    told: list[tuple[int, int]] = []
    ask(make_reader(), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (20, 20)  # of 21, one pair twice
    assert told == sorted(told)


@pytest.mark.parametrize("sites", ["input", 2, [1, "output"]], ids=str)
def test_other_sites_are_generated_by_transformers(sites: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_reader(sites=sites, gates=1.0)
    assert not decodes_greedily(reader.model)
    monkeypatch.setattr(greedy, "_TOGETHER", 5)
    answers = ask(reader)
    assert len(set(answers)) > 3
    assert answers == by_generate(reader)


def test_soft_tokens_are_generated_by_transformers() -> None:
    reader = make_reader(sites="input", fusion="prefix")
    assert ask(reader) == by_generate(reader)


@pytest.mark.parametrize("architecture", ["openai-gpt", "mamba"])
def test_a_backbone_whose_beginnings_cannot_be_shared(architecture: str) -> None:
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        n_head=4,
    )
    torch.manual_seed(0)
    backbone = LoadedBackbone.from_model(
        AutoModelForCausalLM.from_config(config).eval(), tokenizer, id=architecture, random_weights=True
    )
    model = ClimateTextForCausalLM.from_backbone(
        backbone, statistics=statistics(), encoder_options=ENCODER, sites="output"
    )
    assert not decodes_greedily(model)
    assert len(Reader(model, make_processor(model), 3).answer(WINDOWS[:2], QUESTIONS[:2])) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repetition_penalty", 1.5),
        ("no_repeat_ngram_size", 1),
        ("min_new_tokens", 7),
        ("num_beams", 3),
        ("suppress_tokens", list(range(100, 200))),
        ("begin_suppress_tokens", list(range(100, 300))),
        ("bad_words_ids", [[token] for token in range(100, 200)]),
        ("sequence_bias", [[[token], 9.0] for token in range(100, 120)]),
        ("forced_eos_token_id", 2),
    ],
)
@pytest.mark.sampled(3)
def test_options_that_change_greedy_words_are_followed(option: str, value: Any) -> None:
    reader = make_reader()
    reader.model.generation_config.eos_token_id = 2
    setattr(reader.model.generation_config, option, value)
    assert not decodes_greedily(reader.model)
    assert ask(reader) == by_generate(reader)


def test_options_that_change_nothing() -> None:
    idle = {
        "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5, "max_length": 999, "use_cache": False,
        "pad_token_id": 0, "bos_token_id": 1, "repetition_penalty": 1.0, "num_beams": 1, "length_penalty": 2.0,
        "min_length": 0, "no_repeat_ngram_size": 0, "early_stopping": True,
    }  # fmt: skip
    assert is_plain_greedy(GenerationConfig(**idle))
    assert is_plain_greedy(GenerationConfig())
    assert not is_plain_greedy(GenerationConfig(**idle, renormalize_logits=True))
    assert not is_plain_greedy(GenerationConfig(penalty_alpha=0.5, top_k=4))


@pytest.mark.parametrize(("given", "expected"), [(None, []), (0, [0]), ([2, 5], [2, 5])])
def test_end_tokens(given: Any, expected: list[int]) -> None:
    assert end_tokens(GenerationConfig(eos_token_id=given)) == expected


def test_words_in_bfloat16_are_those_of_generate() -> None:
    """Nearly all: where two words are equally likely within rounding, either is right."""
    reader = make_reader(dtype=torch.bfloat16, new=3)
    answers, expected = ask(reader), by_generate(reader)
    assert sum(one == other for one, other in zip(answers, expected, strict=True)) >= 0.8 * len(answers)


def test_windows_of_several_sizes() -> None:
    reader = make_reader()
    windows = [random_window(seed, height=5 + seed % 3, width=6 + seed % 2) for seed in range(6)]
    prompts = [QUESTIONS[1]] * 6
    together = reader.answer(windows, prompts)
    alone = [reader.answer([window], prompts[:1])[0] for window in windows]
    assert together == alone
    assert len(set(together)) > 2


def test_nothing_asked() -> None:
    reader = make_reader()
    assert reader.answer(WINDOWS, []) == []
    assert reader.score(WINDOWS, [], []) == []


@pytest.mark.parametrize("sites", ["output", 2])
def test_what_does_not_fit_is_refused(sites: Any) -> None:
    reader = make_reader(sites=sites)
    with pytest.raises(ModelInputError, match=r"prompts.*a list of texts"):
        reader.answer(WINDOWS[:1], "Wind?")
    with pytest.raises(ModelInputError, match="a window for each of 1 texts"):
        reader.answer(WINDOWS, ["Wind?"])
    with pytest.raises(ModelInputError, match="climate_index"):
        reader.answer(WINDOWS, ["Wind?"], index=[4])
    with pytest.raises(ModelInputError, match="climate_index"):
        reader.answer(WINDOWS, ["Wind?"], index=[0, 1])
    with pytest.raises(ModelInputError, match=r"^prompts: expected texts of at most 256 tokens"):
        reader.answer(WINDOWS[:1], ["Wind? " * 200])
    with pytest.raises(ModelInputError, match="one for each of 1 prompts"):
        reader.score(WINDOWS[:1], ["Wind?"], [])
    with pytest.raises(ModelInputError, match=r"answers.*a list of texts"):
        reader.score(WINDOWS[:1], ["Wind?"], "calm")
