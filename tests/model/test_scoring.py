"""How likely given answers are. Oracle: one text at a time, by the forward call without labels, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from climafuse.model import PrefixStore, scoring
from climafuse.model.inference import Reader
from tests.model.build import make_model, make_processor, random_window
from tests.tiny import in_every_architecture

WINDOWS = [random_window(seed) for seed in range(4)]
PROMPTS = ["What is the mean temperature?", "Wind?", "What is the mean temperature?", "Wind?", "Wind?"]
ANSWERS = ["It is -8 °C.", "calm", "It is -8.5 °C, warmer than normal.", "calm", "calm"]
INDEX = [0, 1, 3, 2, 1]  # the last as the second


def make_reader(architecture: str = "llama", **options: Any) -> Reader:
    model = make_model(architecture, **({"sites": "output", "gates": 2.0} | options))
    return Reader(model, make_processor(model))


@torch.no_grad()
def alone(reader: Reader, prompt: str, answer: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """All logits of one text; which token follows each place of the answer."""
    batch = reader.processor([WINDOWS[window]], [prompt], [answer])
    places = (batch.pop("labels") != -100)[0].nonzero()[:, 0]
    logits = reader.model(**batch).logits[0].double()
    tokens = batch["input_ids"][0, places]
    found = logits.log_softmax(dim=-1)[places - 1, tokens]
    return found.numpy(), (logits.argmax(dim=-1)[places - 1] == tokens).numpy()


def check(reader: Reader) -> None:
    scores = reader.score(WINDOWS, PROMPTS, ANSWERS, index=INDEX)
    for score, prompt, answer, window in zip(scores, PROMPTS, ANSWERS, INDEX, strict=True):
        expected, right = alone(reader, prompt, answer, window)
        assert score.log_probabilities.dtype == np.float64
        np.testing.assert_allclose(score.log_probabilities, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(score.right, right)
        assert score.num_bytes == len(answer.encode("utf-8"))
    assert np.abs(scores[1].log_probabilities - scores[3].log_probabilities).max() > 1e-2  # another window
    np.testing.assert_array_equal(scores[1].log_probabilities, scores[4].log_probabilities)


@pytest.mark.parametrize("sites", ["input", 2, "output", [1, "output"]], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_are_those_of_the_forward_call(architecture: str, sites: Any) -> None:
    check(make_reader(architecture, sites=sites))


@in_every_architecture
def test_scores_in_every_architecture(architecture: str) -> None:
    check(make_reader(architecture))


def test_scores_with_soft_tokens_before_the_text() -> None:
    check(make_reader(sites="input", fusion="prefix"))


@pytest.mark.parametrize("limits", [{"_POSITIONS": 1}, {"_TOKENS": 1}, {"_STATES": 1}], ids=str)
@pytest.mark.parametrize("sites", [2, "output"])
def test_scores_do_not_depend_on_how_many_are_in_memory(
    sites: Any, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(scoring, name, value)
    reader = make_reader(sites=sites)
    check(reader)
    monkeypatch.setattr("climafuse.model.inference._WINDOWS", 1)
    monkeypatch.setattr("climafuse.model.inference._TOKENS", 1)
    check(reader)


def test_the_sum_is_the_loss() -> None:
    reader = make_reader(sites=[2, "output"])
    batch = reader.processor(WINDOWS, PROMPTS, ANSWERS, climate_index=INDEX)
    with torch.no_grad():
        loss = float(reader.model(**batch).loss)
    scores = reader.score(WINDOWS, PROMPTS, ANSWERS, index=INDEX)
    tokens = np.concatenate([score.log_probabilities for score in scores])
    assert -tokens.mean() == pytest.approx(loss, rel=1e-4)


def test_what_is_said_greedily_is_right_word_by_word() -> None:
    reader = make_reader()
    prompts = PROMPTS[:2]
    said = Reader(reader.model, reader.processor, 6).answer(WINDOWS[:2], prompts)
    tokenizer = reader.processor.tokenizer
    for score, text in zip(reader.score(WINDOWS[:2], prompts, said), said, strict=True):
        words = tokenizer(text, add_special_tokens=False).input_ids
        assert len(score.right) == len(words) + 1


def test_a_text_is_read_once_whatever_the_window() -> None:
    reader = make_reader()
    tokens: list[int] = []
    reader.model.backbone.get_input_embeddings().register_forward_hook(
        lambda module, args, output: tokens.append(args[0].shape[1])
    )
    reader.score(WINDOWS, [PROMPTS[0]] * 4, [ANSWERS[0]] * 4)
    text = reader.processor.encode(PROMPTS[0], ANSWERS[0])[0]
    assert [length for length in tokens if length > 1] == [len(text)]


def test_states_that_training_keeps_stay_as_they_are() -> None:
    reader = make_reader()
    kept = reader.model.prefix_store = PrefixStore(reader.model.backbone, "output")
    reader.score(WINDOWS[:1], PROMPTS[:1], ANSWERS[:1])
    assert reader.model.prefix_store is kept
    assert len(kept) == 0


def test_progress_counts_what_is_computed() -> None:
    told: list[tuple[int, int]] = []
    make_reader().score(
        WINDOWS, PROMPTS, ANSWERS, index=INDEX, progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (4, 4)
