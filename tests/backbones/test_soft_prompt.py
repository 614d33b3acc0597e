"""States before texts. Oracle: embeddings put side by side by hand, one text at a time, without padding or cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from climafuse.backbones import gather, prefix_states, soft_prompt, word_size
from climafuse.errors import BackboneError, ModelInputError
from tests.tiny import ARCHITECTURES, tiny_model

P, D = 3, 32
TEXTS = [[5, 9, 40, 41, 300, 17, 60, 61, 62, 63, 64, 65], [7, 8, 120, 121, 122]]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def states() -> Tensor:
    return torch.randn(2, P, D, generator=torch.Generator().manual_seed(0))


def prompt(present: tuple[bool, bool] = (True, True)) -> Any:
    """Of two texts, each of which may have several rows."""

    def make(rows: int) -> tuple[Tensor, Tensor]:
        each = rows // 2
        return states().repeat_interleave(each, dim=0), torch.tensor(present).repeat_interleave(each)

    return make


def logits_by_hand(model: PreTrainedModel, text: list[int], before: Tensor) -> Tensor:
    """Logits of one text: the states before it and its embeddings as one sequence."""
    ids = torch.tensor([text])
    embeddings = model.get_input_embeddings()
    # What a model adds to embeddings at the first positions (GPT-2, OPT), which the given states already hold.
    any_ids = torch.zeros(1, P, dtype=torch.long)
    added = prefix_states(model, "input", input_ids=any_ids) - embeddings(any_ids)
    whole = torch.cat([before[None] - added, embeddings(ids)], dim=1)
    logits: Tensor = model(inputs_embeds=whole).logits[0, P:]
    return logits


def batch(side: str) -> dict[str, Tensor]:
    """Both texts, padded on a side."""
    width = len(TEXTS[0])
    ids, mask = torch.full((2, width), 3), torch.zeros(2, width, dtype=torch.long)
    for row, text in enumerate(TEXTS):
        where = slice(width - len(text), None) if side == "left" else slice(len(text))
        ids[row, where] = torch.tensor(text)
        mask[row, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


@every_architecture
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_words_read_the_states_before_them_whatever_the_padding(architecture: str, side: str) -> None:
    model = tiny_model(architecture)
    given = batch(side)
    with soft_prompt(model, P, prompt()):
        logits = model(**given).logits
    assert logits.shape == (2, len(TEXTS[0]), model.config.vocab_size)
    for row, text in enumerate(TEXTS):
        expected = logits_by_hand(model, text, states()[row])
        torch.testing.assert_close(
            logits[row][given["attention_mask"][row].bool()], expected, rtol=1e-4, atol=1e-3
        )
        bare = model(input_ids=torch.tensor([text])).logits[0]
        assert (expected - bare).abs().max() > 0.1  # the states are seen


@every_architecture
@torch.no_grad()
def test_a_text_that_has_no_states_is_read_alone(architecture: str) -> None:
    model = tiny_model(architecture)
    given = batch("left")
    with soft_prompt(model, P, prompt(present=(True, False))):
        logits = model(**given).logits
    # The same window of places for local attention: nothing stands between its words.
    bare = model(input_ids=torch.tensor([TEXTS[1]])).logits[0]
    torch.testing.assert_close(logits[1, -len(TEXTS[1]) :], bare, rtol=1e-4, atol=1e-3)
    expected = logits_by_hand(model, TEXTS[0], states()[0])
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-3)


@every_architecture
@torch.no_grad()
@pytest.mark.sampled(3)
def test_generation_is_the_models_own(architecture: str) -> None:
    model = tiny_model(architecture)
    model.generation_config.eos_token_id = None
    given = batch("left")
    expected = []
    for row, text in enumerate(TEXTS):
        words = list(text)
        for _ in range(5):
            words.append(int(logits_by_hand(model, words, states()[row])[-1].argmax()))
        expected.append(words[-5:])
    with soft_prompt(model, P, prompt()):
        for cached in (True, False):
            found = model.generate(**given, max_new_tokens=5, do_sample=False, use_cache=cached)
            assert found.shape == (2, len(TEXTS[0]) + 5)
            assert torch.equal(found[:, :-5], given["input_ids"])
            assert found[:, -5:].tolist() == expected
        beams = model.generate(
            **given, max_new_tokens=4, num_beams=3, do_sample=False, length_penalty=0.0,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    for row, text in enumerate(TEXTS):
        words = beams.sequences[row, -4:].tolist()
        shares = logits_by_hand(model, text + words, states()[row]).log_softmax(dim=-1)
        score = sum(float(shares[len(text) - 1 + place, word]) for place, word in enumerate(words))
        assert float(beams.sequences_scores[row]) == pytest.approx(score, abs=1e-3)


@torch.no_grad()
def test_positions_of_the_caller_count_from_the_first_word() -> None:
    for model in (tiny_model("gpt2"), tiny_model("llama")):
        ids = torch.tensor([TEXTS[0], TEXTS[0]])
        with soft_prompt(model, P, prompt()):
            expected = model(input_ids=ids).logits
            chosen = torch.arange(len(TEXTS[0]))[None]
            assert torch.equal(model(ids, position_ids=chosen).logits, expected)
            other = model(input_ids=ids, position_ids=chosen + 4).logits
        assert not torch.allclose(other, expected, atol=1e-2)


@torch.no_grad()
def test_a_cache_goes_on() -> None:
    model = tiny_model()
    ids = torch.tensor([TEXTS[0], TEXTS[0]])
    with soft_prompt(model, P, prompt()):
        expected = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :7], use_cache=True)
        rest = model(input_ids=ids[:, 7:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_gathered_and_last_logits_are_of_the_text() -> None:
    model = tiny_model()
    given = batch("right")
    positions = torch.zeros(2, len(TEXTS[0]), dtype=torch.bool)
    positions[0, [2, 11]] = positions[1, 4] = True
    with soft_prompt(model, P, prompt()):
        logits = model(**given).logits
        with gather(model, positions):
            torch.testing.assert_close(model(**given).logits[0], logits[positions])
        torch.testing.assert_close(model(**given, logits_to_keep=1).logits, logits[:, -1:])


def test_gradients_reach_the_states() -> None:
    model = tiny_model().requires_grad_(False)
    before = states().requires_grad_()
    given = batch("left")
    with soft_prompt(model, P, lambda rows: (before, torch.tensor([True, False]))):
        model(**given).logits[given["attention_mask"].bool()].square().sum().backward()
    assert before.grad is not None
    assert before.grad[0].abs().amax(dim=-1).min() > 0
    assert not before.grad[1].any()


def test_nothing_stays_behind() -> None:
    model = tiny_model()
    bare = model(**batch("left")).logits
    with soft_prompt(model, P, prompt()), pytest.raises(IndexError):
        model(input_ids=torch.full((2, 4), 100_000))
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert "forward" not in vars(model)
    assert torch.equal(model(**batch("left")).logits, bare)


@torch.no_grad()
def test_what_would_go_wrong_in_silence_is_refused() -> None:
    model = tiny_model()
    given = batch("left")
    with soft_prompt(model, P, prompt()):
        with pytest.raises(ModelInputError, match="as token numbers"):
            model(inputs_embeds=torch.zeros(2, 4, D))
        with pytest.raises(ModelInputError, match=r"attention_mask: expected \(2, 12\)"):
            model(input_ids=given["input_ids"], attention_mask=torch.ones(2, 5))
        with pytest.raises(ModelInputError, match="a cache that grows"):
            model.generate(**given, max_new_tokens=3, cache_implementation="static")
        with pytest.raises(ModelInputError, match="nothing but padding"):
            model.generate(**given, max_new_tokens=3, prefill_chunk_size=4)
        cache = model(**given, use_cache=True).past_key_values
        cache.crop(-2)
        mask = torch.cat([given["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
        with pytest.raises(ModelInputError, match="leave it whole"):
            model(input_ids=given["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)


@torch.no_grad()
def test_a_model_that_keeps_no_keys_and_values_is_refused() -> None:
    config = MambaConfig(vocab_size=364, hidden_size=32, state_size=4, num_hidden_layers=2)
    with (
        pytest.raises(BackboneError, match="past_key_values"),
        soft_prompt(MambaForCausalLM(config), P, prompt()),
    ):
        pass


@torch.no_grad()
def test_a_prompt_read_in_parts_is_read_all_the_same() -> None:
    model = tiny_model()
    text = {name: tensor[:1] for name, tensor in batch("left").items()}  # without padding
    one = (states()[:1], torch.ones(1, dtype=torch.bool))
    with soft_prompt(model, P, lambda rows: one):
        expected = model.generate(**text, max_new_tokens=5, do_sample=False)
        assert torch.equal(
            model.generate(**text, max_new_tokens=5, do_sample=False, prefill_chunk_size=5), expected
        )


@torch.no_grad()
def test_guessed_words_do_not_change_what_is_generated() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([TEXTS[0][:4] * 3])  # repeats itself, so that there is a guess
    one = (states()[:1], torch.ones(1, dtype=torch.bool))
    options = {"max_new_tokens": 12, "do_sample": False}
    with soft_prompt(model, P, lambda rows: one):
        expected = model.generate(input_ids=ids, **options)
        assert torch.equal(model.generate(input_ids=ids, prompt_lookup_num_tokens=2, **options), expected)


@torch.no_grad()
def test_the_size_of_words_is_that_of_their_states_at_the_input() -> None:
    model = tiny_model("llama")
    table = model.get_input_embeddings().weight
    expected = float(table.pow(2).mean().sqrt())
    assert word_size(model, words=4096) == pytest.approx(expected, rel=0.02)
    # Gemma multiplies its embeddings by the root of their width, GPT-2 adds positions.
    gemma = tiny_model("gemma3")
    scaled = gemma.get_input_embeddings().weight.pow(2).mean().sqrt() * D**0.5
    assert word_size(gemma) == pytest.approx(float(scaled), rel=0.05)
