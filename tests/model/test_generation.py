"""Generating text about climate. Oracle: one prompt at a time without a cache, by the forward call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from climafuse.errors import ModelInputError
from climafuse.fusion import CrossAttentionFusion
from climafuse.model import ClimateTextForCausalLM
from tests.model.build import FUSIONS, PROMPTS, climate_of, make_batch, make_model
from tests.tiny import in_every_architecture, tiny_model

NEW = 6
SITES: dict[str, Any] = {
    "input": "input",
    "output": "output",
    "middle": 2,
    "mixture": ["input", 1, 3, "output"],
}
every_site = pytest.mark.parametrize("sites", SITES.values(), ids=SITES.keys())
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)


def greedy(model: ClimateTextForCausalLM, batch: dict[str, Tensor], row: int, new: int = NEW) -> list[int]:
    """The words after one prompt, each by a forward call over all that stands before it."""
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()][None]
    climate = {name: tensor[row : row + 1] for name, tensor in climate_of(batch).items()}
    words: list[int] = []
    for _ in range(new):
        with torch.no_grad():
            word = model(input_ids=ids, **climate).logits[0, -1].argmax()
        words.append(int(word))
        ids = torch.cat([ids, word.view(1, 1)], dim=1)
    return words


def answers(generated: Tensor, batch: dict[str, Tensor]) -> list[list[int]]:
    return generated[:, batch["input_ids"].shape[1] :].tolist()


def options(**more: Any) -> dict[str, Any]:
    """No early end: random models would stop anywhere."""
    return {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False} | more


def without_end(model: ClimateTextForCausalLM) -> ClimateTextForCausalLM:
    model.generation_config.eos_token_id = None
    return model


@every_site
@every_fusion
@pytest.mark.sampled(3)
def test_unequal_prompts_together_equal_one_by_one(sites: Any, fusion: str) -> None:
    model = without_end(make_model(sites=sites, fusion=fusion))
    batch = make_batch(model, answers=None)
    assert batch["attention_mask"][0, 0] == 0  # padded on the left
    assert batch["attention_mask"][:, -1].all()
    expected = [greedy(model, batch, row) for row in range(2)]
    assert expected[0] != expected[1]
    assert answers(model.generate(**batch, **options()), batch) == expected
    assert answers(model.generate(**batch, **options(use_cache=False)), batch) == expected


@in_every_architecture
def test_generation_in_every_architecture(architecture: str) -> None:
    model = without_end(make_model(architecture, sites=[2, "output"]))
    batch = make_batch(model, answers=None)
    expected = [greedy(model, batch, row) for row in range(2)]
    assert answers(model.generate(**batch, **options()), batch) == expected


def test_climate_decides_the_words() -> None:
    model = without_end(make_model(gates=2.0))
    batch = make_batch(model, answers=None)
    before = model.generate(**batch, **options())
    swapped = batch | {name: tensor.flip(0) for name, tensor in climate_of(batch).items()}
    assert not torch.equal(model.generate(**swapped, **options()), before)


@every_fusion
def test_the_climate_is_encoded_once(fusion: str) -> None:
    model = without_end(make_model(sites=[1, 3, "output"], fusion=fusion))
    batch = make_batch(model, answers=None)
    encoded: list[int] = []
    model.encoder.register_forward_hook(lambda *args: encoded.append(1))
    model.generate(**batch, **options())
    assert encoded == [1]


@pytest.mark.parametrize("beams", [1, 3])
def test_keys_and_values_are_made_once_a_site(beams: int) -> None:
    model = without_end(make_model(sites=[1, 3]))
    batch = make_batch(model, answers=None)
    made: list[tuple[int, ...]] = []
    for fusion in model.fusions.values():
        assert isinstance(fusion, CrossAttentionFusion)
        fusion.key.register_forward_hook(lambda module, args, output: made.append(tuple(output.shape[:1])))
    for _ in range(2):
        made.clear()
        model.generate(**batch, **options(num_beams=beams))
        assert made == [(2 * beams,)] * 2


@every_site
@every_fusion
@pytest.mark.sampled(3)
def test_beams_see_the_climate_of_their_own_text(sites: Any, fusion: str) -> None:
    # Oracle: one prompt at a time, where nothing can be mixed up. The prompts are the same: only the climate differs.
    model = without_end(make_model(sites=sites, fusion=fusion, gates=3.0))
    batch = make_batch(model, prompts=PROMPTS[:1] * 2, answers=None)
    together = model.generate(
        **batch,
        **options(num_beams=3, num_return_sequences=2, output_scores=True, return_dict_in_generate=True),
    )
    assert together.sequences.shape[0] == 4
    scores = together.sequences_scores
    assert (scores[:2] - scores[2:]).abs().max() > 1e-3
    for row in range(2):
        single = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        alone = model.generate(
            **single,
            **options(num_beams=3, num_return_sequences=2, output_scores=True, return_dict_in_generate=True),
        )
        assert torch.equal(together.sequences[2 * row : 2 * row + 2], alone.sequences)
        torch.testing.assert_close(
            scores[2 * row : 2 * row + 2], alone.sequences_scores, rtol=1e-4, atol=1e-4
        )


def test_a_beam_is_scored_as_the_forward_call_scores_it() -> None:
    model = without_end(make_model(gates=1.0))
    batch = make_batch(model, answers=None)
    found = model.generate(
        **batch, **options(num_beams=4, output_scores=True, return_dict_in_generate=True, length_penalty=0.0)
    )
    for row in range(2):
        ids = found.sequences[row : row + 1]
        mask = torch.cat(
            [batch["attention_mask"][row : row + 1], torch.ones(1, NEW, dtype=torch.long)], dim=1
        )
        climate = {name: tensor[row : row + 1] for name, tensor in climate_of(batch).items()}
        keep = mask[0].bool()
        with torch.no_grad():
            shares = model(input_ids=ids[:, keep], **climate).logits.log_softmax(dim=-1)
        words = ids[0, -NEW:]
        score = sum(shares[0, -NEW - 1 + place, words[place]] for place in range(NEW))
        assert found.sequences_scores[row].item() == pytest.approx(float(score), abs=1e-3)


def test_samples_see_the_climate_of_their_own_text() -> None:
    # Nearly no temperature: every sample is the most likely text of its own row.
    model = without_end(make_model(gates=3.0))
    batch = make_batch(model, prompts=PROMPTS[:1] * 2, answers=None)
    torch.manual_seed(0)
    generated = model.generate(
        **batch, **options(do_sample=True, num_return_sequences=3, temperature=1e-4, top_k=0)
    )
    expected = [greedy(model, batch, row) for row in range(2)]
    assert expected[0] != expected[1]
    assert answers(generated, batch) == [expected[0]] * 3 + [expected[1]] * 3


def test_sampling_repeats_with_its_seed() -> None:
    model = without_end(make_model())
    batch = make_batch(model, answers=None)

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        generated: Tensor = model.generate(**batch, **options(do_sample=True, num_return_sequences=2))
        return generated

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_several_prompts_about_one_window() -> None:
    model = without_end(make_model(gates=8.0))
    index = [1, 1, 0]
    prompts = ("Wind?", "What is the mean temperature?", "Wind?")
    batch = make_batch(model, prompts=prompts, answers=None, index=index)
    separate = {name: batch[name] for name in ("input_ids", "attention_mask")}
    separate |= {name: tensor[index] for name, tensor in climate_of(batch).items()}
    expected = model.generate(**separate, **options())
    assert torch.equal(model.generate(**batch, **options()), expected)
    assert not torch.equal(expected[0], expected[2])
    beams = options(num_beams=2)
    assert torch.equal(model.generate(**batch, **beams), model.generate(**separate, **beams))


def test_climate_encoded_before() -> None:
    model = without_end(make_model())
    batch = make_batch(model, answers=None)
    tokens = model.encode_climate(**climate_of(batch))
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    generated = model.generate(
        **texts, climate_states=tokens.states, climate_states_mask=tokens.mask, **options()
    )
    assert torch.equal(generated, model.generate(**batch, **options()))


def test_an_untrained_model_says_what_the_bare_backbone_says() -> None:
    model = without_end(make_model(gates=0.0, sites=["input", 2, "output"]))
    batch = make_batch(model, answers=None)
    bare = tiny_model()
    bare.generation_config.eos_token_id = None
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model.generate(**batch, **options()), bare.generate(**texts, **options()))


def test_weights_may_change_between_two_calls() -> None:
    model = without_end(make_model(gates=1.0))
    batch = make_batch(model, answers=None)
    states = model.encode_climate(**climate_of(batch))
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    given |= {"climate_states": states.states.detach(), "climate_states_mask": states.mask}
    before = model.generate(**given, **options())
    for parameter in model.fusions.parameters():
        parameter.data.mul_(-1)
    fresh = without_end(make_model(gates=1.0))
    fresh.load_state_dict(model.state_dict())
    after = model.generate(**given, **options())
    assert torch.equal(after, fresh.generate(**given, **options()))
    assert not torch.equal(after, before)


def test_the_backbone_itself_reads_climate_for_a_while() -> None:
    model = without_end(make_model())
    batch = make_batch(model)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = model(**texts, **climate_of(batch)).logits
    tokens = model.encode_climate(**climate_of(batch))
    bare = model.backbone(**texts).logits
    with torch.no_grad(), model.conditioned(tokens) as backbone:
        assert torch.equal(backbone(**texts).logits, expected)
    assert tokens.memory is None
    assert torch.equal(model.backbone(**texts).logits, bare)
    with model.conditioned(tokens), pytest.raises(ModelInputError, match="a multiple of 2 texts"):
        model.backbone(input_ids=torch.ones(3, 4, dtype=torch.long))
    assert torch.equal(model.backbone(**texts).logits, bare)


def test_prompts_and_windows_that_do_not_fit_are_refused() -> None:
    model = make_model()
    batch = make_batch(model, answers=None)
    with pytest.raises(ModelInputError, match="a window for each of 1 texts; received 2"):
        model.generate(**(batch | {"input_ids": batch["input_ids"][:1]}), max_new_tokens=2)
    with pytest.raises(ModelInputError, match="climate_fields"):
        model.generate(input_ids=batch["input_ids"], max_new_tokens=2)
