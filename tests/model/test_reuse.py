"""Stored states of texts. Oracle: the same text run through the backbone, and the model without a store."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from climafuse.backbones import prefix_states
from climafuse.errors import ModelInputError
from climafuse.model import PrefixStore
from climafuse.model.reuse import _alike, _common
from tests.model.build import make_batch, make_model
from tests.tiny import in_every_architecture, tiny_backbone

Tokens = tuple[int, ...]
PROMPTS = (
    "What is the mean temperature?",
    "What is the mean temperature?",
    "Is it windy over there?",
    "Wind?",
)
ANSWERS = ("It is -8 °C.", "It is -8.5 °C, warmer than normal.", "It is calm.", "7 m/s from the northwest")


def texts_of_many_kinds(seed: int = 0) -> list[Tokens]:
    """Shared beginnings longer than local attention, texts that begin others, loners, a single token."""
    generator = torch.Generator().manual_seed(seed)

    def random(length: int) -> Tokens:
        return tuple(torch.randint(4, 300, (length,), generator=generator).tolist())

    common, other = random(20), random(12)
    return [
        *(common + random(length) for length in (1, 3, 6, 9)),
        common, common[:15],
        *(other + random(length) for length in (2, 2, 30)),
        random(12), random(1),
    ]  # fmt: skip


def shares(store: PrefixStore) -> bool:
    """Whether any beginning was run once for several texts; otherwise a test of it proves nothing."""
    return any(group.shared for group, _ in store._groups.values())


def as_batch(texts: list[Tokens]) -> tuple[Tensor, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        mask[row, : len(text)] = 1
    return ids, mask


@in_every_architecture
@pytest.mark.parametrize("site", ["input", 0, 2, "output"])
@torch.no_grad()
def test_stored_states_are_those_of_the_text_alone(architecture: str, site: Any) -> None:
    backbone = tiny_backbone(architecture).model
    texts = texts_of_many_kinds()
    store = PrefixStore(backbone, site, batch=3)  # groups end in the middle of what begins alike
    store.add(texts)
    assert len(store) == len(texts)
    assert shares(store) == (site not in ("input", 0))
    states = store.lookup(*as_batch(texts))
    for row, text in enumerate(texts):
        expected = prefix_states(backbone, site, input_ids=torch.tensor([text]))[0]
        torch.testing.assert_close(
            states[row, : len(text)], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
        )
        assert not states[row, len(text) :].any()


@pytest.mark.parametrize("architecture", ["openai-gpt", "rwkv", "mamba"])
@torch.no_grad()
def test_what_cannot_be_shared_is_computed_for_each_text(architecture: str) -> None:
    # The first knows no cache, the second keeps a state and ignores a cache, the third cannot repeat its own.
    config = AutoConfig.for_model(
        architecture, vocab_size=364, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, n_head=4
    )
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    texts = texts_of_many_kinds()
    store = PrefixStore(backbone, 2, batch=3)
    store.add(texts)
    states = store.lookup(*as_batch(texts))
    for row, text in enumerate(texts):
        expected = prefix_states(backbone, 2, input_ids=torch.tensor([text]))[0]
        torch.testing.assert_close(states[row, : len(text)], expected, rtol=1e-4, atol=1e-5)


@in_every_architecture
@pytest.mark.parametrize("sites", ["input", [2, "output"], "output"], ids=str)
def test_loss_and_gradients_with_and_without_a_store(architecture: str, sites: Any) -> None:
    model = make_model(architecture, sites=sites).train()
    batch = make_batch(model, prompts=PROMPTS, answers=ANSWERS, index=[0, 1, 0, 1])
    results = []
    for store in (None, PrefixStore(model.backbone, model.sites[0], batch=2)):
        model.prefix_store = store
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.loss.detach(), output.logits.detach(), grads))
    assert store is not None
    assert shares(store) == (sites != "input")
    (loss, logits, grads), (stored_loss, stored_logits, stored_grads) = results
    torch.testing.assert_close(stored_loss, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stored_logits, logits, rtol=1e-4, atol=1e-4)
    assert stored_grads.keys() == grads.keys()
    for name, gradient in grads.items():
        size = float(gradient.abs().max())
        torch.testing.assert_close(stored_grads[name], gradient, rtol=1e-3, atol=1e-4 * size + 1e-7)


@in_every_architecture
@pytest.mark.parametrize("sites", [2, "output"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_at_equal_shapes_loss_and_gradients_are_the_same_bit_for_bit(
    architecture: str, sites: Any, dtype: torch.dtype
) -> None:
    """One text, stored in a batch of its own as it stands in the batch of training."""
    model = make_model(architecture, sites=sites, dtype=dtype).train()
    batch = make_batch(model, prompts=PROMPTS[:1], answers=ANSWERS[:1], index=[0])
    assert batch["attention_mask"].all()
    found = []
    for stored in (False, True):
        model.zero_grad()
        if stored:
            model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
            model.prefix_store.add([tuple(batch["input_ids"][0].tolist())])
        loss = model(**batch).loss
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([loss.detach(), *gradients])
    assert len(found[0]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@torch.no_grad()
def test_states_in_bfloat16_are_within_two_percent() -> None:
    for architecture in ("llama", "gpt2"):
        backbone = tiny_backbone(architecture, dtype=torch.bfloat16).model
        texts = texts_of_many_kinds()
        store = PrefixStore(backbone, 2, batch=3)
        store.add(texts)
        assert shares(store)
        states = store.lookup(*as_batch(texts))
        for row, text in enumerate(texts):
            expected = prefix_states(backbone, 2, input_ids=torch.tensor([text]))[0].float()
            difference = (states[row, : len(text)].float() - expected).abs().max()
            assert difference < 0.02 * expected.abs().max()


@pytest.mark.parametrize("sites", [2, "output"])
def test_within_autocast_stored_states_are_taken_and_computed_as_before(sites: Any) -> None:
    """On a GPU, autocast has a layer norm answer in float32, and what was stored is in the backbone's own type."""
    model = make_model("gpt2", sites=sites, dtype=torch.bfloat16).train()
    model.backbone.transformer.ln_f.register_forward_hook(
        lambda module, args, output: output.float() if torch.is_autocast_enabled("cpu") else output
    )
    batch = make_batch(model)
    without = model(**batch).loss
    texts = [
        tuple(row[mask.bool()].tolist())
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    stores = [PrefixStore(model.backbone, sites) for _ in range(2)]
    stores[0].add(texts)
    with torch.autocast("cpu", torch.bfloat16):
        stores[1].lookup(batch["input_ids"], batch["attention_mask"])
        stores[1]._groups.clear()
        for text in texts:
            new = stores[1]._renewed([text])[text]
            one = PrefixStore(model.backbone, sites)
            with torch.autocast("cpu", enabled=False):
                one.add([text])
            assert all(torch.equal(a, b) for a, b in zip(new, one._kept(text) or (), strict=True))
        model.prefix_store = stores[0]
        loss = model(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss.float(), without.float(), rtol=0.02, atol=0.02)


def test_texts_that_begin_alike_are_run_once() -> None:
    model = make_model(sites=2)
    beginning = tuple(range(10, 50))
    texts = [(*beginning, 100 + number) for number in range(8)]
    ran: list[tuple[int, ...]] = []
    embeddings = model.backbone.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, args, output: ran.append(tuple(args[0].shape)))
    store = PrefixStore(model.backbone, 2)
    progress: list[tuple[int, int]] = []
    store.add(texts, progress=lambda done, number: progress.append((done, number)))
    assert ran == [(1, 40), (8, 1)]  # one beginning, eight last words
    assert progress == [(8, 8)]
    store.add(texts)
    store.lookup(*as_batch(texts))
    assert len(ran) == 2  # nothing again
    assert store.states.num_bytes == (40 + 8) * 32 * 4  # and kept once


def test_a_text_that_is_not_stored_is_computed_and_kept() -> None:
    store = PrefixStore(tiny_backbone().model, 2)
    ids, mask = as_batch([(5, 6, 7), (5, 6)])
    states = store.lookup(ids, mask)
    assert len(store) == 2
    assert torch.equal(store.lookup(ids[:1], mask[:1])[0], states[0])
    assert not store.lookup(ids, mask).requires_grad


def test_padding_does_not_make_another_text() -> None:
    # A pad token within the text counts, the same token in the padding does not.
    store = PrefixStore(tiny_backbone().model, 2)
    ids = torch.tensor([[5, 6, 3, 3]])
    store.lookup(ids, torch.tensor([[1, 1, 0, 0]]))
    store.lookup(ids, torch.tensor([[1, 1, 1, 0]]))
    store.lookup(ids[:, :2], torch.tensor([[1, 1]]))
    assert set(store._groups) == {(5, 6), (5, 6, 3)}


@pytest.mark.parametrize("mask", [[0, 1, 1], [1, 0, 1], [0, 0, 0]])
def test_other_padding_is_refused(mask: list[int]) -> None:
    model = make_model(sites=2)
    model.prefix_store = PrefixStore(model.backbone, 2)
    with pytest.raises(ModelInputError, match="padded on the right"):
        model.prefix_store.lookup(torch.tensor([[5, 6, 7]]), torch.tensor([mask]))


@pytest.mark.parametrize("sites", [2, "output"], ids=str)
def test_positions_of_the_callers_own_are_refused_with_a_store(sites: Any) -> None:
    model = make_model(sites=sites)
    batch = make_batch(model)
    model.prefix_store = PrefixStore(model.backbone, model.sites[0])
    positions = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    with pytest.raises(ModelInputError, match="position_ids"):
        model(**batch, position_ids=positions + 3)
    model.prefix_store = None
    model(**batch, position_ids=positions)


def test_stored_while_activations_are_recomputed() -> None:
    # Blocks that recompute drop the cache they are given, in training mode: beginnings would be forgotten.
    model = make_model(sites=3)
    texts = texts_of_many_kinds()
    expected = PrefixStore(model.backbone, 3, batch=3)
    expected.add(texts)
    assert shares(expected)
    model.activation_checkpointing_enable()
    model.train()
    store = PrefixStore(model.backbone, 3, batch=3)
    states = store.lookup(*as_batch(texts))
    assert model.backbone.training
    torch.testing.assert_close(states, expected.lookup(*as_batch(texts)))


def test_generation_does_not_need_the_store() -> None:
    model = make_model(sites=2)
    batch = make_batch(model, answers=None)
    before = model.generate(**batch, max_new_tokens=4)
    model.prefix_store = PrefixStore(model.backbone, 2)
    assert torch.equal(model.generate(**batch, max_new_tokens=4), before)
    assert len(model.prefix_store) == 0


def test_what_the_bare_backbone_would_say() -> None:
    # Oracle: the largest logits of the bare backbone before each label.
    for sites in ("output", 2):
        model = make_model(sites=sites)
        batch = make_batch(model)
        logits = model.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labeled = batch["labels"][:, 1:] != -100
        expected = logits[:, :-1][labeled].topk(3).indices
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        assert torch.equal(model.likely_tokens(**given, count=3), expected)
        model.prefix_store = PrefixStore(model.backbone, model.sites[0])
        assert torch.equal(model.likely_tokens(**given, count=3), expected)


# ---- Grouping


def test_common_beginnings() -> None:
    assert _common((1, 2, 3), (1, 2, 4)) == 2
    assert _common((1, 2), (1, 2, 4)) == 2
    assert _common((), (1,)) == 0
    assert _common((2,), (1,)) == 0


def cost(groups: list[list[Tokens]]) -> float:
    """As the docstring of `_alike` has it: the beginning once, padded rests, two passes of 64 tokens' worth."""
    total = 0.0
    for group in groups:
        lengths = range(min(map(len, group)) + 1)
        shared = max(length for length in lengths if len({text[:length] for text in group}) == 1)
        total += shared + len(group) * (max(map(len, group)) - shared) + 2 * 64
    return total


@pytest.mark.parametrize("seed", range(4))
def test_groups_keep_all_texts_in_order_and_cost_least(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    texts = set()
    for _ in range(7):
        length = int(torch.randint(1, 200, (1,), generator=generator))
        coin = torch.randint(0, 2, (length,), generator=generator)
        texts.add((*coin.cumprod(0).tolist(), length))
    ordered = sorted(texts)
    groups = list(_alike(ordered, 4))
    assert [text for group in groups for text in group] == ordered
    assert max(map(len, groups)) <= 4
    # Oracle: every way to cut seven texts.
    cuts = itertools.chain.from_iterable(
        itertools.combinations(range(1, len(ordered)), number) for number in range(len(ordered))
    )
    possible = []
    for cut in cuts:
        edges = [0, *cut, len(ordered)]
        ways = [ordered[start:end] for start, end in itertools.pairwise(edges)]
        if max(map(len, ways)) <= 4:
            possible.append(cost(ways))
    assert cost(groups) == min(possible)
