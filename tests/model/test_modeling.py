"""The composite model's forward call. Oracles: the bare backbone, a loss by hand, one row at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel, OPTConfig, OPTForCausalLM

from climafuse.backbones import LoadedBackbone, find_blocks, hash_parameters, num_blocks_below
from climafuse.backbones.widening import widen_products
from climafuse.climate_tokens import ClimateTokens
from climafuse.encoders import ClimateEncoder, ConvEncoder
from climafuse.errors import ConfigurationError, ModelInputError
from climafuse.fusion import CrossAttentionFusion, Fusion, GatedAdditionFusion
from climafuse.model import ClimateTextConfig, ClimateTextForCausalLM, SampledVocabulary, channels_of
from tests.fusion.small import open_gates
from tests.model.build import (
    ENCODER,
    FUSIONS,
    PROMPTS,
    climate_of,
    make_batch,
    make_model,
    statistics,
)
from tests.tiny import in_every_architecture, tiny_backbone, tiny_model, tiny_tokenizer

SITES: dict[str, Any] = {
    "input": "input",
    "output": "output",
    "middle": 2,
    "last two": {"last": 2},
    "mixture": ["input", 1, -1, "output"],
}
every_site = pytest.mark.parametrize("sites", SITES.values(), ids=SITES.keys())
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)


def text_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


# ---- The bare backbone


@every_site
@every_fusion
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
@pytest.mark.sampled(2)
def test_an_untrained_model_is_the_bare_backbone_bit_for_bit(
    sites: Any, fusion: str, dtype: torch.dtype
) -> None:
    bare = tiny_model(dtype=dtype)
    widen_products(bare)  # where this processor multiplies no bfloat16
    model = make_model(sites=sites, fusion=fusion, gates=0.0, dtype=dtype)
    batch = make_batch(model)
    # Of a model that was never wrapped: wrapping once changed how the backbone computes.
    expected = bare(**text_of(batch)).logits
    output = model(**text_of(batch), **climate_of(batch))
    assert output.logits.dtype == dtype
    assert torch.equal(output.logits, expected)
    assert output.loss is None
    assert torch.equal(model.backbone(**text_of(batch)).logits, expected)


@torch.no_grad()
def test_hidden_states_of_the_backbone_are_given_where_they_are_asked_for() -> None:
    bare, model = tiny_model(), make_model(gates=0.0)
    batch = make_batch(model)
    expected = bare(**text_of(batch), output_hidden_states=True).hidden_states
    asked = model(**text_of(batch), **climate_of(batch), output_hidden_states=True)
    assert len(asked.hidden_states) == len(expected)
    assert all(map(torch.equal, asked.hidden_states, expected))
    assert model(**text_of(batch), **climate_of(batch)).hidden_states is None


@in_every_architecture
@every_fusion
@torch.no_grad()
def test_so_it_is_in_every_architecture(architecture: str, fusion: str) -> None:
    bare = tiny_model(architecture)
    model = make_model(architecture, sites=[1, "output"], fusion=fusion, gates=0.0)
    batch = make_batch(model)
    expected = bare(**text_of(batch)).logits
    assert torch.equal(model(**text_of(batch), **climate_of(batch)).logits, expected)
    open_gates(model.fusions, 0.5)
    assert not torch.allclose(model(**text_of(batch), **climate_of(batch)).logits, expected, atol=0.1)


@torch.no_grad()
def test_wrapping_leaves_the_backbone_as_it_was() -> None:
    # Even where the composite's configuration is given the very configuration of the backbone.
    bare = tiny_model()
    before = bare(input_ids=torch.arange(4, 12).view(1, 8)).logits
    kind = bare.config._attn_implementation
    backbone = LoadedBackbone.from_model(bare, tiny_tokenizer(), id="tiny")
    dictionary = bare.config.to_dict()
    config = ClimateTextConfig(
        text_config=bare.config, backbone=dict(backbone.identity), backbone_dtype="float32",
        variables=list(make_model().config.variables), statistics=make_model().config.statistics,
    )  # fmt: skip
    ClimateTextForCausalLM(config, backbone)
    assert bare.config._attn_implementation == kind == "sdpa"
    assert bare.config.to_dict() == dictionary
    assert torch.equal(bare(input_ids=torch.arange(4, 12).view(1, 8)).logits, before)


@in_every_architecture
@torch.no_grad()
def test_a_word_does_not_see_later_ones(architecture: str) -> None:
    model = make_model(architecture, sites=["input", 2, "output"])
    batch = make_batch(model, prompts=PROMPTS[:1], answers=("It is -8 °C.",), num_windows=1)
    ids = batch["input_ids"]
    changed = ids.clone()
    changed[0, 9:] = 7
    logits = [
        model(input_ids=given, attention_mask=batch["attention_mask"], **climate_of(batch)).logits
        for given in (ids, changed)
    ]
    assert torch.equal(logits[0][:, :9], logits[1][:, :9])
    assert not torch.allclose(logits[0][:, 9:], logits[1][:, 9:])


# ---- Climate reaches the words


@every_site
@every_fusion
@torch.no_grad()
def test_climate_changes_the_words_of_its_own_text_only(sites: Any, fusion: str) -> None:
    model = make_model(sites=sites, fusion=fusion)
    batch = make_batch(model)
    before = model(**text_of(batch), **climate_of(batch)).logits
    other = climate_of(batch)
    other["climate_fields"] = other["climate_fields"].clone()
    other["climate_fields"][1] += 1.0
    after = model(**text_of(batch), **other).logits
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.05


@every_site
@every_fusion
@torch.no_grad()
def test_several_texts_to_a_window_equal_a_window_for_each(sites: Any, fusion: str) -> None:
    model = make_model(sites=sites, fusion=fusion)
    index = [1, 0, 1, 1]
    prompts, answers = PROMPTS * 2, ("one", "two two", "three", "4")
    shared = make_batch(model, prompts=prompts, answers=answers, index=index)
    separate = {name: shared[name] for name in ("input_ids", "attention_mask", "labels")}
    separate |= {name: tensor[index] for name, tensor in climate_of(shared).items()}
    torch.testing.assert_close(model(**shared).loss, model(**separate).loss)
    torch.testing.assert_close(model(**shared).logits, model(**separate).logits, rtol=1e-4, atol=1e-4)
    del shared["labels"], separate["labels"]
    torch.testing.assert_close(model(**shared).logits, model(**separate).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_climate_encoded_before_is_the_same() -> None:
    model = make_model(sites=[2, "output"])
    batch = make_batch(model)
    tokens = model.encode_climate(**climate_of(batch))
    texts = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = model(**batch)
    output = model(**texts, climate_states=tokens.states, climate_states_mask=tokens.mask)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.climate_mask, expected.climate_mask)
    # Without a mask every token counts.
    assert not torch.allclose(model(**texts, climate_states=tokens.states).logits, expected.logits)


@every_fusion
@torch.no_grad()
def test_without_any_value_the_model_is_the_bare_backbone(fusion: str) -> None:
    # Without summary tokens, too: they would say that there is no value.
    plain = {"encoder_options": {**ENCODER, "summary": False}}
    model = make_model(sites=["input", 2, "output"], fusion=fusion, **plain)
    batch = make_batch(model)
    empty = climate_of(batch)
    empty["climate_mask"] = torch.zeros_like(empty["climate_mask"])
    logits = model(**text_of(batch), **empty).logits
    assert torch.equal(logits, tiny_model()(**text_of(batch)).logits)


# ---- The loss


def loss_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over every label of -log p(label | what is before it)."""
    losses = []
    for row in range(len(labels)):
        for position in range(1, labels.shape[1]):
            label = labels[row, position]
            if label != -100:
                shares = torch.exp(logits[row, position - 1].double())
                losses.append(-torch.log(shares[label] / shares.sum()))
    return torch.stack(losses).mean()


@every_site
@torch.no_grad()
def test_the_loss_is_the_shifted_cross_entropy_of_the_answers(sites: Any) -> None:
    model = make_model(sites=sites)
    batch = make_batch(model)
    logits = model(**text_of(batch), **climate_of(batch)).logits
    output = model(**batch)
    expected = loss_by_hand(logits, batch["labels"])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.loss.dtype == torch.float32
    # Logits of the labeled positions only.
    number = (batch["labels"][:, 1:] != -100).sum()
    assert output.logits.shape == (number, model.backbone.config.vocab_size)


@in_every_architecture
@torch.no_grad()
def test_the_loss_in_every_architecture(architecture: str) -> None:
    for sites in (2, "output"):
        model = make_model(architecture, sites=sites)
        batch = make_batch(model)
        logits = model(**text_of(batch), **climate_of(batch)).logits
        assert model(**batch, use_cache=True).loss.item() == pytest.approx(
            loss_by_hand(logits, batch["labels"]).item(), rel=1e-4
        )


def test_the_sum_is_divided_by_the_number_of_items_of_the_whole_step() -> None:
    model = make_model()
    batch = make_batch(model)
    number = int((batch["labels"] != -100).sum())
    mean = model(**batch).loss
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * number).loss, mean / 2)
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(number)).loss, mean)
    # Two microbatches of unequal answers add up to the mean over all: the point of it.
    parts = 0.0
    for row in range(2):
        part = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        parts = parts + model(**part, num_items_in_batch=number).loss
    torch.testing.assert_close(parts, mean)


@every_site
def test_a_sampled_vocabulary_counts_in_training_only(sites: Any) -> None:
    model = make_model(sites=sites)
    batch = make_batch(model)
    full = model(**batch).loss
    size = model.backbone.config.vocab_size
    kept = batch["labels"][batch["labels"] != -100]
    model.sampled_vocabulary = SampledVocabulary(kept, size, num_sampled=size)
    model.train()
    torch.testing.assert_close(model(**batch).loss, full)  # every token drawn
    model.sampled_vocabulary = SampledVocabulary(kept, size, num_sampled=20)
    output = model(**batch)
    assert output.logits.shape[1] == len(kept.unique()) + 20
    assert not torch.isclose(output.loss, full, rtol=1e-6)
    model.eval()
    assert torch.equal(model(**batch).loss, full)


# ---- What is trained and what is not


def train(model: ClimateTextForCausalLM, batch: dict[str, Tensor], steps: int = 12) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    losses = []
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("gpt2", torch.float32),  # was made with dropout
        pytest.param("llama", torch.float32, marks=pytest.mark.slow),
        pytest.param("gpt2", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_training_lowers_the_loss_and_leaves_frozen_weights_alone(
    architecture: str, dtype: torch.dtype
) -> None:
    model = make_model(architecture, sites=[1, "output"], gates=0.0, dtype=dtype)
    before = hash_parameters(model.backbone)
    trainable = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == model.trainable_state_dict().keys()
    assert all(name.startswith(("encoder.", "fusions.")) for name in trainable)
    assert all(p.dtype == torch.float32 for p in trainable.values())
    losses = train(model, make_batch(model))
    assert losses[-1] < losses[0] - 0.5
    assert hash_parameters(model.backbone) == before == model.backbone_identity["content_hash"]
    changed = {
        name for name, p in model.named_parameters() if name in trainable and not p.equal(trainable[name])
    }
    assert changed == trainable.keys()


def test_training_and_evaluation_mode_give_the_same_loss() -> None:
    for architecture in ("llama", "gpt2", "opt", "gpt_neo"):
        model = make_model(architecture)
        batch = make_batch(model)
        evaluated = model(**batch).loss
        torch.testing.assert_close(model.train()(**batch).loss, evaluated)


def gradients(model: ClimateTextForCausalLM, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sites", [2, ["input", 3], {"last": 1}, "output"], ids=str)
def test_gradients_reach_everything_trainable_and_nothing_else(sites: Any) -> None:
    model = make_model(sites=sites).train()
    found = gradients(model, make_batch(model))
    assert found.keys() == model.trainable_state_dict().keys()
    assert {name for name, gradient in found.items() if not gradient.any()} == set()


@pytest.mark.parametrize("recompute", [False, True])
def test_no_graph_is_kept_below_the_first_site(recompute: bool) -> None:
    model = make_model(sites=[2, 3]).train()
    if recompute:
        model.activation_checkpointing_enable()
    graphs: list[bool] = []
    handles = [
        block.register_forward_hook(lambda module, args, output: graphs.append(output.requires_grad))
        for block in find_blocks(model.backbone).blocks
    ]
    model(**make_batch(model))
    for handle in handles:
        handle.remove()
    assert graphs == [False, False, True, True]


@pytest.mark.parametrize("through", ["composite", "backbone"])
@in_every_architecture
def test_recomputed_activations_give_equal_gradients(architecture: str, through: str) -> None:
    model = make_model(architecture, sites=[2, 3]).train()
    batch = make_batch(model)
    expected = gradients(model, batch)
    part = model if through == "composite" else model.backbone
    part.activation_checkpointing_enable({"use_reentrant": False})
    calls = 0

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1

    # Oracle that it does recompute: a part of the last block runs again in the backward pass.
    modules = find_blocks(model.backbone).blocks[-1].modules()
    inner = next(module for module in modules if not list(module.children()) and list(module.parameters()))
    inner.register_forward_pre_hook(count)
    found = gradients(model, batch)
    assert calls == 2
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    part.activation_checkpointing_disable()
    gradients(model, batch)
    assert calls == 3


def test_an_architecture_without_cache_and_recomputation_is_read_all_the_same() -> None:
    config = OpenAIGPTConfig(vocab_size=364, n_embd=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    backbone = LoadedBackbone.from_model(OpenAIGPTLMHeadModel(config), tiny_tokenizer(), id="gpt")
    model = ClimateTextForCausalLM.from_backbone(backbone, statistics=statistics(), encoder_options=ENCODER)
    batch = make_batch(model)
    found = model(**text_of(batch), **climate_of(batch))
    assert torch.equal(found.logits, backbone.model(**text_of(batch)).logits)
    assert found.past_key_values is None
    with pytest.raises(ConfigurationError, match="OpenAIGPTLMHeadModel, which cannot"):
        model.activation_checkpointing_enable({"use_reentrant": False})


@pytest.mark.parametrize(("fusion", "most"), [("cross_attention", 256), ("prefix", 252)])
@torch.no_grad()
def test_a_text_has_as_many_tokens_as_there_are_positions(fusion: str, most: int) -> None:
    model = make_model("gpt2", fusion=fusion, sites="input")
    assert model.num_soft_tokens == 256 - most
    climate = climate_of(make_batch(model, num_windows=1, prompts=("x",), answers=None))
    ids = torch.full((1, most + 1), 5)
    for call in (model, model.generate):
        with pytest.raises(ModelInputError, match=f"at most {most} tokens, for which GPT2LMHeadModel"):
            call(input_ids=ids, **climate)
    assert model(input_ids=ids[:, 1:], **climate).logits.shape[1] == most


@torch.no_grad()
def test_a_backbone_without_a_limit_reads_a_text_of_any_length() -> None:
    """XLNet says that it has -1 positions: its states depend on distances alone."""
    model = make_model("gpt2", sites="input")
    model.config.get_text_config().max_position_embeddings = -1
    climate = climate_of(make_batch(model, num_windows=1, prompts=("x",), answers=None))
    assert model(input_ids=torch.full((1, 200), 5), **climate).logits.shape[1] == 200


@pytest.mark.parametrize("options", [{"use_reentrant": True}, {}])
def test_reentrant_recomputation_is_refused(options: dict[str, bool]) -> None:
    with pytest.raises(ConfigurationError, match="use_reentrant: expected False"):
        make_model().activation_checkpointing_enable(options)


# ---- Parts of one's own


class OwnFusion(Fusion):
    """Adds the mean of the climate tokens; not registered."""

    def __init__(self, hidden_size: int, climate_width: int, factor: float = 1.0) -> None:
        super().__init__(hidden_size, climate_width)
        self.projection = nn.Linear(climate_width, hidden_size)
        self.gate = nn.Parameter(torch.zeros(hidden_size))
        self.factor = factor

    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        mean = (climate.states * climate.mask.unsqueeze(-1)).sum(1) / climate.mask.sum(1, keepdim=True).clamp(
            min=1
        )
        return (text + self.factor * self.gate * self.projection(mean).unsqueeze(1)).to(text.dtype)


class OwnEncoder(ClimateEncoder):
    """One token that holds the mean of each variable; not registered."""

    def __init__(self, channels: Any, width: int = 8) -> None:
        super().__init__(channels, width)
        self.linear = nn.Linear(len(channels.names), width)

    def forward(
        self, fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor, time: Tensor
    ) -> ClimateTokens:
        self.check(fields, mask, latitude, longitude, time)
        states = self.linear(fields[:, -1].mean(dim=(-2, -1))).unsqueeze(1)
        nowhere = states.new_full((len(states), 1), torch.nan)
        return ClimateTokens(states, mask.flatten(1).any(1, keepdim=True), nowhere, nowhere, time[:, -1:])


@pytest.mark.parametrize(
    "fusion", [OwnFusion, CrossAttentionFusion, lambda d, c: GatedAdditionFusion(d, c, 2, 8)]
)
def test_parts_of_ones_own_need_no_registration(fusion: Any) -> None:
    channels = channels_of(statistics())
    model = ClimateTextForCausalLM.from_backbone(
        tiny_backbone(),
        statistics=statistics(),
        encoder=OwnEncoder(channels),
        fusion=fusion,
        sites=[1, "output"],
    )
    batch = make_batch(model)
    bare = tiny_model()(**text_of(batch)).logits
    assert torch.equal(model(**text_of(batch), **climate_of(batch)).logits, bare)
    open_gates(model.fusions, 0.5)
    before = hash_parameters(model.backbone)
    losses = train(model, batch)
    assert losses[-1] < losses[0] - 0.3
    assert hash_parameters(model.backbone) == before
    assert model.config.encoder.endswith("OwnEncoder")


def test_options_reach_a_fusion_given_as_a_class() -> None:
    for fusion in (CrossAttentionFusion, "cross_attention"):
        model = ClimateTextForCausalLM.from_backbone(
            tiny_backbone(), statistics=statistics(), fusion=fusion, fusion_options={"heads": 3}, sites=1
        )
        assert model.config.fusion == "cross_attention"
        assert model.fusions["1"].heads == 3
    model = ClimateTextForCausalLM.from_backbone(
        tiny_backbone(), statistics=statistics(), fusion=OwnFusion, fusion_options={"factor": 2.0}, sites=1
    )
    assert model.fusions["1"].factor == 2.0


def test_options_of_an_encoder_given_as_an_instance_are_recorded() -> None:
    encoder = ConvEncoder(channels_of(statistics()), 24, pooling="none")
    model = ClimateTextForCausalLM.from_backbone(tiny_backbone(), statistics=statistics(), encoder=encoder)
    assert model.config.encoder == "conv"
    assert model.config.encoder_options == {"width": 24, "pooling": "none", "summary": False}
    with pytest.raises(ConfigurationError, match="encoder_options"):
        ClimateTextForCausalLM.from_backbone(
            tiny_backbone(), statistics=statistics(), encoder=encoder, encoder_options={"width": 24}
        )


def test_an_encoder_with_other_units_or_order_is_refused() -> None:
    channels = channels_of(statistics().isel(variable=[1, 0, 2]))
    with pytest.raises(ConfigurationError, match=r"encoder\.channels"):
        ClimateTextForCausalLM.from_backbone(
            tiny_backbone(), statistics=statistics(), encoder=OwnEncoder(channels)
        )


def test_fusions_are_as_wide_as_the_states_at_their_site() -> None:
    # OPT-350M: 1,024 wide between blocks, 512 at the head.
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=128,
    )  # fmt: skip
    backbone = LoadedBackbone.from_model(OPTForCausalLM(config).eval(), tiny_tokenizer(), id="narrow")
    model = ClimateTextForCausalLM.from_backbone(
        backbone, statistics=statistics(), encoder_options=ENCODER, sites=[1, "output"]
    )
    assert [fusion.hidden_size for fusion in model.fusions.values()] == [32, 16]
    open_gates(model.fusions, 0.5)
    assert model(**make_batch(model)).loss.isfinite()


# ---- Reports


def test_gate_values_are_mean_magnitudes_by_site() -> None:
    model = make_model(gates=0.0)
    names = ["1.attention_gate", "1.feed_forward_gate", "output.attention_gate", "output.feed_forward_gate"]
    assert model.gate_values() == dict.fromkeys(names, 0.0)
    with torch.no_grad():
        model.fusions["1"].attention_gate[:16] = -0.5  # half of 32
    assert model.gate_values()["1.attention_gate"] == pytest.approx(0.25)


def test_embeddings_are_those_of_the_backbone() -> None:
    model = make_model()
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()
    assert model.get_output_embeddings() is model.backbone.get_output_embeddings()
    assert num_blocks_below(model.sites[0], 4) == 1


# ---- Wrong calls


def test_wrong_calls_are_refused() -> None:
    model = make_model()
    batch = make_batch(model)
    texts = text_of(batch)
    with pytest.raises(ModelInputError, match=r"climate_fields, climate_mask.*ClimateTextProcessor"):
        model(**texts)
    with pytest.raises(ModelInputError, match="climate_time"):
        model(**texts, **{name: t for name, t in climate_of(batch).items() if name != "climate_time"})
    one = {name: tensor[:1] for name, tensor in climate_of(batch).items()}
    with pytest.raises(ModelInputError, match="a window for each of 2 texts; received 1 windows"):
        model(**texts, **one)
    for index in ([0, 2], [-1, 0], [0]):
        with pytest.raises(ModelInputError, match="climate_index"):
            model(**texts, **climate_of(batch), climate_index=torch.tensor(index))
    with pytest.raises(ModelInputError, match="labels"):
        model(**texts, **climate_of(batch), labels=torch.full_like(texts["input_ids"], -100))


@pytest.mark.parametrize("sites", [7, "head", {"first": 2}, ["input", 0], []])
def test_wrong_sites_are_refused(sites: Any) -> None:
    with pytest.raises(ConfigurationError, match="sites"):
        make_model(sites=sites)


def test_nothing_stays_attached_after_an_error() -> None:
    model = make_model()
    batch = make_batch(model)
    bad = copy.copy(batch)
    bad["input_ids"] = batch["input_ids"] + 10_000
    with pytest.raises(IndexError):
        model(**bad)
    assert not any(module._forward_pre_hooks for module in model.backbone.modules())
    assert torch.equal(model(**batch).loss, model(**batch).loss)
