"""A prefix in the composite model, beside the contract of tests/matrix: how often it is made, where it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from climafuse.errors import ConfigurationError, ModelInputError
from climafuse.model import ClimateTextForCausalLM, PrefixStore
from tests.model.build import PROMPTS, climate_of, make_batch, make_model

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture
def model() -> ClimateTextForCausalLM:
    made = make_model(fusion="prefix", sites="input")
    made.backbone.generation_config.eos_token_id = None
    return made


@pytest.mark.parametrize("sites", ["output", 0, 2, ["input", 2], {"last": 2}, {"every": 2}], ids=str)
def test_anywhere_but_at_the_input_it_is_refused(sites: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"sites: expected input.*sites='input'"):
        make_model(fusion="prefix", sites=sites)


def test_its_places_have_the_size_of_words_whatever_the_type(model: ClimateTextForCausalLM) -> None:
    table = model.backbone.get_input_embeddings().weight
    assert model.word_size == pytest.approx(float(table.pow(2).mean().sqrt()), rel=0.02)
    seen: list[Tensor] = []
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(fusion="prefix", sites="input", dtype=dtype)
        model.fusions["input"].register_forward_hook(lambda module, args, output: seen.append(output))
        batch = make_batch(model)
        assert model(**batch).loss.isfinite()
        assert seen[-1].dtype == dtype
        size = seen[-1].detach().float().pow(2).mean().sqrt()
        assert float(size) == pytest.approx(model.word_size, rel=0.02)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_it_is_made_once_a_window_while_text_is_generated(
    model: ClimateTextForCausalLM, options: dict[str, Any]
) -> None:
    batch = make_batch(model, prompts=(*PROMPTS, "Wind?"), answers=None, index=[1, 1, 0])
    made: list[int] = []
    model.fusions["input"].key.register_forward_hook(lambda module, args, output: made.append(len(output)))
    model.generate(**batch, **GREEDY, **options)
    assert made == [3]  # of each text's window
    made.clear()
    model(**batch)
    assert made == [2]  # of each window


def test_a_window_for_several_prompts(model: ClimateTextForCausalLM) -> None:
    index = [1, 1, 0]
    batch = make_batch(model, prompts=(PROMPTS[0], "Wind?", PROMPTS[0]), answers=None, index=index)
    separate = {name: batch[name] for name in ("input_ids", "attention_mask")}
    separate |= {name: tensor[index] for name, tensor in climate_of(batch).items()}
    for options in ({}, {"num_beams": 2}):
        found = model.generate(**batch, **GREEDY, **options)
        assert torch.equal(found, model.generate(**separate, **GREEDY, **options))
    assert not torch.equal(found[0], found[2])


def test_samples_see_the_climate_of_their_own_text(model: ClimateTextForCausalLM) -> None:
    # Nearly no temperature: every sample is the most likely text of its own row.
    batch = make_batch(model, prompts=PROMPTS[1:] * 2, answers=None)
    greedy = model.generate(**batch, **GREEDY)
    assert not torch.equal(greedy[0], greedy[1])
    samples = model.generate(
        **batch, max_new_tokens=4, do_sample=True, num_return_sequences=2, temperature=1e-4, top_k=0
    )
    assert torch.equal(samples, greedy.repeat_interleave(2, dim=0))


def test_the_backbone_itself_reads_it_for_a_while(model: ClimateTextForCausalLM) -> None:
    batch = make_batch(model)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    bare = model.backbone(**texts).logits
    expected = model(**texts, **climate_of(batch)).logits
    tokens = model.encode_climate(**climate_of(batch))
    with torch.no_grad(), model.conditioned(tokens) as backbone:
        assert torch.equal(backbone(**texts).logits, expected)
        with pytest.raises(ModelInputError, match="a multiple of 2 texts"):
            backbone(input_ids=torch.ones(3, 4, dtype=torch.long))
    assert torch.equal(model.backbone(**texts).logits, bare)


def test_a_store_is_not_asked_where_there_is_nothing_to_reuse(model: ClimateTextForCausalLM) -> None:
    batch = make_batch(model)
    expected = model(**batch).loss
    model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
    assert torch.equal(model(**batch).loss, expected)
    assert len(model.prefix_store) == 0


def test_it_has_no_gates(model: ClimateTextForCausalLM) -> None:
    assert model.gate_values() == {}
