"""Windows and words to tensors. Oracles: the collator, tokens put together by hand, a fresh processor."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from climafuse.data.batch import collate_windows
from climafuse.errors import ConfigurationError, ModelInputError
from climafuse.model import ClimateFeatureExtractor, ClimateTextProcessor
from tests.model.build import (
    ANSWERS,
    PROMPTS,
    VARIABLES,
    make_model,
    make_processor,
    random_window,
    statistics,
)
from tests.tiny import tiny_tokenizer


@pytest.fixture
def processor() -> ClimateTextProcessor:
    return make_processor(make_model())


@pytest.fixture
def plain(processor: ClimateTextProcessor) -> ClimateTextProcessor:
    """Of a backbone without a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return ClimateTextProcessor(processor.feature_extractor, tokenizer)


def ids(text: str) -> list[int]:
    tokens: list[int] = tiny_tokenizer()(text, add_special_tokens=False).input_ids
    return tokens


def test_fields_are_those_of_the_collator(processor: ClimateTextProcessor) -> None:
    windows = [random_window(0), random_window(1, height=3, steps=2)]
    batch = processor(windows)
    expected = collate_windows(windows, statistics())
    assert set(batch) == set(expected) == set(ClimateFeatureExtractor.model_input_names)
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
        assert batch[name].dtype == tensor.dtype


def test_a_variable_that_a_window_lacks_is_missing_and_an_unknown_one_refused(
    processor: ClimateTextProcessor,
) -> None:
    mask = processor([random_window(0, variables=("ws10", "t2m"))])["climate_mask"]
    assert not mask[:, :, VARIABLES.index("msl")].any()
    assert mask[:, :, VARIABLES.index("ws10")].any()
    window = random_window(0)
    object.__setattr__(window, "variables", ("t2m", "msl", "sst"))
    with pytest.raises(ModelInputError, match="received sst"):
        processor([window])


def test_training_texts_with_a_chat_template(processor: ClimateTextProcessor) -> None:
    batch = processor([random_window(0), random_window(1)], PROMPTS, ANSWERS)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        # The template of tests/tiny.py by hand; its end-of-text token is <|im_end|>.
        before = ids(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
        after = [*ids(answer), tiny_tokenizer().eos_token_id]
        length = len(before) + len(after)
        assert batch["input_ids"][row, :length].tolist() == before + after
        assert batch["labels"][row].tolist() == [
            *[-100] * len(before), *after, *[-100] * (batch["labels"].shape[1] - length),
        ]  # fmt: skip
        assert batch["attention_mask"][row].tolist() == [
            *[1] * length, *[0] * (batch["labels"].shape[1] - length),
        ]  # fmt: skip
        assert (batch["input_ids"][row, length:] == tiny_tokenizer().pad_token_id).all()


def test_training_texts_without_a_chat_template(plain: ClimateTextProcessor) -> None:
    batch = plain([random_window(0)], PROMPTS[:1], ANSWERS[:1])
    before, after = ids(f"Question: {PROMPTS[0]}\nAnswer:"), ids(f" {ANSWERS[0]}")
    assert batch["input_ids"][0].tolist() == [*before, *after, tiny_tokenizer().eos_token_id]
    assert (batch["labels"][0] != -100).sum() == len(after) + 1


def test_prompts_for_generation_are_padded_on_the_left(processor: ClimateTextProcessor) -> None:
    batch = processor([random_window(0), random_window(1)], PROMPTS)
    assert "labels" not in batch
    for row, prompt in enumerate(PROMPTS):
        tokens = ids(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
        padding = batch["input_ids"].shape[1] - len(tokens)
        assert batch["input_ids"][row, padding:].tolist() == tokens
        assert batch["attention_mask"][row].tolist() == [0] * padding + [1] * len(tokens)


@pytest.mark.parametrize("with_template", [True, False])
def test_what_is_learned_is_what_is_generated(
    processor: ClimateTextProcessor, plain: ClimateTextProcessor, with_template: bool
) -> None:
    # The tokens before the answer are the same in training and in generation, whatever the answer begins with.
    given = processor if with_template else plain
    for answer in ("8", " 8", "°C", "\n", ""):
        tokens, length = given.encode(PROMPTS[0], answer)
        prompt, whole = given.encode(PROMPTS[0], None)
        assert tokens[:length] == prompt
        assert whole == length == len(prompt)
        assert tokens[-1] == tiny_tokenizer().eos_token_id


def test_answers_are_read_back(processor: ClimateTextProcessor) -> None:
    batch = processor([random_window(0)] * 2, PROMPTS)
    length = batch["input_ids"].shape[1]
    end, pad = tiny_tokenizer().eos_token_id, tiny_tokenizer().pad_token_id
    new = [[*ids(answer), end] for answer in ANSWERS]
    longest = max(map(len, new))
    generated = torch.tensor(
        [
            [*batch["input_ids"][row].tolist(), *new[row], *[pad] * (longest - len(new[row]))]
            for row in range(2)
        ]
    )
    assert processor.decode_answers(generated, length) == list(ANSWERS)


def test_several_prompts_to_a_window(processor: ClimateTextProcessor) -> None:
    batch = processor([random_window(0)], PROMPTS, ANSWERS, climate_index=[0, 0])
    assert batch["climate_index"].tolist() == [0, 0]
    assert len(batch["climate_fields"]) == 1
    assert len(batch["input_ids"]) == 2


def test_texts_alone(processor: ClimateTextProcessor) -> None:
    assert set(processor(prompts=PROMPTS)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"windows": 2, "prompts": PROMPTS[:1]},
        {"windows": 2, "prompts": PROMPTS, "answers": ANSWERS[:1]},
        {"windows": 1, "prompts": PROMPTS, "climate_index": [0]},
        {"windows": 1, "prompts": []},
        {"windows": 0, "prompts": PROMPTS},
        {"windows": 1, "prompts": PROMPTS[0]},  # a text is a sequence of its letters
        {"prompts": "Wind?"},
        {"windows": 1, "prompts": [None]},
        {"windows": 1, "prompts": PROMPTS[:1], "answers": [8]},
        {"windows": 5, "prompts": PROMPTS[:1] * 5, "answers": "Windy"},
    ],
)
def test_what_does_not_fit_together_is_refused(
    processor: ClimateTextProcessor, arguments: dict[str, Any]
) -> None:
    if "windows" in arguments:
        arguments = arguments | {"windows": [random_window(0)] * arguments["windows"]}
    with pytest.raises(ModelInputError):
        processor(**arguments)


def test_statistics_that_lack_a_variable_are_refused(processor: ClimateTextProcessor) -> None:
    extractor = ClimateFeatureExtractor(("t2m", "sst"), processor.feature_extractor.statistics)
    with pytest.raises(ConfigurationError, match="none of sst"):
        extractor([random_window(0)])


def test_the_order_of_channels_is_that_of_the_variables(processor: ClimateTextProcessor) -> None:
    turned = ClimateFeatureExtractor(VARIABLES[::-1], processor.feature_extractor.statistics)
    fields = processor([random_window(0)])["climate_fields"]
    assert torch.equal(turned([random_window(0)])["climate_fields"], fields.flip(2))


@pytest.mark.parametrize("option", [{"return_tensors": "np"}, {"text": ["x"]}, {"max_length": 5}], ids=str)
def test_options_that_would_be_ignored_are_refused(
    processor: ClimateTextProcessor, option: dict[str, Any]
) -> None:
    with pytest.raises(ModelInputError, match=next(iter(option))):
        processor([random_window(0)], PROMPTS[:1], **option)
    with pytest.raises(ModelInputError, match=next(iter(option))):
        processor.feature_extractor([random_window(0)], **option)
    batch = processor([random_window(0)], PROMPTS[:1], return_tensors="pt", padding=True)
    assert torch.equal(batch["input_ids"], processor([random_window(0)], PROMPTS[:1])["input_ids"])


def test_a_prompt_does_not_end_though_the_tokenizer_ends_every_text(plain: ClimateTextProcessor) -> None:
    expected = plain.encode(PROMPTS[0], ANSWERS[0])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    assert tokenizer("x").input_ids[-1] == tokenizer.eos_token_id
    assert ClimateTextProcessor(plain.feature_extractor, tokenizer).encode(PROMPTS[0], ANSWERS[0]) == expected


# ---- The memory of texts


def test_remembered_texts_are_those_of_a_fresh_processor(processor: ClimateTextProcessor) -> None:
    first = processor.encode(PROMPTS[0], ANSWERS[0])
    assert processor.encode(PROMPTS[0], ANSWERS[0]) is first  # it does remember
    assert make_processor(make_model()).encode(PROMPTS[0], ANSWERS[0]) == first
    assert processor.encode(PROMPTS[0], ANSWERS[1]) != first
    assert processor.encode(PROMPTS[0], None) != first


def test_another_template_or_tokenizer_is_not_answered_from_memory(processor: ClimateTextProcessor) -> None:
    first = processor.encode(PROMPTS[0], ANSWERS[0])
    processor.tokenizer.chat_template = "{{ messages[0]['content'] }}:"
    changed = processor.encode(PROMPTS[0], ANSWERS[0])
    assert changed[0] == (*ids(f"{PROMPTS[0]}:"), *ids(ANSWERS[0]), tiny_tokenizer().eos_token_id)
    processor.tokenizer = tiny_tokenizer()
    assert processor.encode(PROMPTS[0], ANSWERS[0]) == first


def test_several_named_templates(processor: ClimateTextProcessor) -> None:
    expected = processor.encode(PROMPTS[0], None)
    template = processor.tokenizer.chat_template
    processor.tokenizer.chat_template = {"default": template, "tool_use": "{{ 1 / 0 }}"}
    assert processor.encode(PROMPTS[0], None) == expected


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_and_workers_of_a_loader(processor: ClimateTextProcessor, clone: Any) -> None:
    expected = processor([random_window(0)], PROMPTS[:1], ANSWERS[:1])
    cloned = clone(processor)
    batch = cloned([random_window(0)], PROMPTS[:1], ANSWERS[:1])
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor)
    cloned.tokenizer.chat_template = "x"
    assert processor.encode(PROMPTS[0], None) == make_processor(make_model()).encode(PROMPTS[0], None)


# ---- Saving


@pytest.mark.parametrize("loader", [ClimateTextProcessor, AutoProcessor])
@pytest.mark.parametrize("used", [False, True])
def test_saved_and_loaded(processor: ClimateTextProcessor, tmp_path: Path, loader: Any, used: bool) -> None:
    if used:  # what was computed meanwhile is not written
        processor([random_window(0)], PROMPTS[:1], ANSWERS[:1])
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is ClimateTextProcessor
    assert loaded.feature_extractor.variables == list(VARIABLES)
    assert loaded.feature_extractor.statistics == processor.feature_extractor.statistics
    windows = [random_window(0), random_window(1)]
    for answers in (ANSWERS, None):
        one, other = processor(windows, PROMPTS, answers), loaded(windows, PROMPTS, answers)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(other[name], tensor), name
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


@pytest.mark.parametrize("loader", [ClimateTextProcessor, AutoProcessor])
@pytest.mark.parametrize("with_template", [True, False])
def test_added_words_and_templates_survive_saving(tmp_path: Path, loader: Any, with_template: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<place>", "hectopascal"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<climate>"]})
    if not with_template:
        tokenizer.chat_template = None
    model = make_model()
    processor = ClimateTextProcessor.of(model.config, tokenizer)
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert len(loaded.tokenizer) == len(tokenizer) == len(tiny_tokenizer()) + 3
    prompt = "<climate> How many hectopascal in <place>?"
    assert loaded.encode(prompt, "1013 hectopascal.") == processor.encode(prompt, "1013 hectopascal.")
    assert tokenizer.convert_tokens_to_ids("hectopascal") in loaded.encode(prompt, None)[0]
    assert bool(loaded.tokenizer.chat_template) == with_template
    assert loaded.tokenizer.padding_side == tokenizer.padding_side
    if with_template:
        message = [{"role": "user", "content": prompt}]
        texts = {
            one.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            for one in (processor.tokenizer, loaded.tokenizer, loaded)
        }
        assert texts == {f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"}


def test_statistics_survive_saving_to_the_last_bit(tmp_path: Path) -> None:
    exact = statistics()
    exact["mean"].values[:] = np.nextafter([1 / 3, 101325 / 7, 2e-9], 1)
    from climafuse.data.normalization import statistics_to_dict

    extractor = ClimateFeatureExtractor(VARIABLES, statistics_to_dict(exact))
    extractor.save_pretrained(tmp_path)
    loaded = ClimateFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.statistics == extractor.statistics
