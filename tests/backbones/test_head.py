"""The head called alone, or for some tokens. Oracle: the model's own logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from climafuse.backbones import find_blocks, freeze, gather, prefix_states
from climafuse.backbones.head import dense_input, head_logits, narrowed
from climafuse.errors import BackboneError
from tests.tiny import ARCHITECTURES, tiny_model

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def make(architecture: str) -> tuple[PreTrainedModel, Tensor]:
    model = tiny_model(architecture)
    freeze(model)
    return model, torch.randint(4, 300, (2, 11), generator=torch.Generator().manual_seed(0))


@every_architecture
@torch.no_grad()
def test_logits_of_states_at_the_output_are_the_models_own(architecture: str) -> None:
    model, ids = make(architecture)
    expected = model(input_ids=ids).logits  # [2, 11, V]
    states = prefix_states(model, "output", input_ids=ids)
    picked = torch.zeros(2, 11, dtype=torch.bool)
    picked[0, [0, 7]] = picked[1, 3] = True
    torch.testing.assert_close(head_logits(model, states[picked]), expected[picked], rtol=1e-5, atol=1e-5)
    assert torch.equal(model(input_ids=ids).logits, expected)  # nothing is left attached


def test_logits_of_a_head_narrower_than_the_blocks() -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=16,
        word_embed_proj_dim=8, max_position_embeddings=32,
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    ids = torch.arange(5).view(1, 5)
    with torch.no_grad():
        states = prefix_states(model, "output", input_ids=ids)
        assert states.shape == (1, 5, find_blocks(model).width("output")) == (1, 5, 8)
        torch.testing.assert_close(head_logits(model, states[0]), model(input_ids=ids).logits[0])


@every_architecture
def test_gradients_flow_through_the_head_to_the_states(architecture: str) -> None:
    # Oracle: the same states given to the whole model at its output.
    model, ids = make(architecture)
    states = prefix_states(model, "output", input_ids=ids)[0].requires_grad_()
    head_logits(model, states).log_softmax(dim=-1)[:, 5].sum().backward()

    again = prefix_states(model, "output", input_ids=ids).requires_grad_()
    handle = find_blocks(model).head.register_forward_pre_hook(lambda module, args: (again, *args[1:]))
    model(input_ids=ids).logits[0].log_softmax(dim=-1)[:, 5].sum().backward()
    handle.remove()
    assert states.grad is not None
    assert again.grad is not None
    assert states.grad.abs().max() > 1e-3
    torch.testing.assert_close(states.grad, again.grad[0], rtol=1e-4, atol=1e-6)


@every_architecture
@torch.no_grad()
def test_a_narrowed_head_gives_some_columns_of_the_logits(architecture: str) -> None:
    model, ids = make(architecture)
    expected = model(input_ids=ids).logits
    tokens = torch.tensor([9, 3, 120, 9])  # any order, one twice
    with narrowed(model, tokens):
        narrow = model(input_ids=ids).logits
        states = prefix_states(model, "output", input_ids=ids)
        flat = head_logits(model, states[0])
    assert narrow.shape == (2, 11, 4)
    torch.testing.assert_close(narrow, expected[..., tokens], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flat, expected[0][:, tokens], rtol=1e-5, atol=1e-5)
    assert torch.equal(model(input_ids=ids).logits, expected)


@torch.no_grad()
def test_narrowed_and_gathered() -> None:
    model, ids = make("llama")
    positions = torch.zeros(2, 11, dtype=torch.bool)
    positions[0, 4] = positions[1, 10] = True
    tokens = torch.tensor([7, 8])
    expected = model(input_ids=ids).logits[positions][:, tokens]
    with narrowed(model, tokens), gather(model, positions):
        logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits, expected.unsqueeze(0), rtol=1e-5, atol=1e-5)


def test_the_head_is_whole_again_after_an_error() -> None:
    model, ids = make("llama")
    with pytest.raises(ZeroDivisionError), narrowed(model, torch.tensor([1])):
        1 / 0  # noqa: B018
    assert model(input_ids=ids).logits.shape[-1] == model.config.vocab_size


def test_a_head_with_a_bias_is_narrowed_with_it() -> None:
    model, ids = make("llama")
    head = nn.Linear(32, model.config.vocab_size)
    model.set_output_embeddings(head)
    expected = model(input_ids=ids).logits
    with narrowed(model, torch.tensor([2, 5])):
        torch.testing.assert_close(model(input_ids=ids).logits, expected[..., [2, 5]])


def test_a_head_that_is_no_linear_layer_is_not_narrowed() -> None:
    model, _ = make("llama")
    model.set_output_embeddings(nn.Sequential(model.get_output_embeddings()))
    with pytest.raises(BackboneError, match="a linear head"), narrowed(model, torch.tensor([1])):
        pass


def test_a_dense_input_leaves_the_logits_as_they_are_and_no_trace() -> None:
    model = tiny_model()
    seen: list[bool] = []
    ids = torch.randint(0, 250, (3, 7), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids, logits_to_keep=1).logits
    with dense_input(model):
        handle = model.lm_head.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].is_contiguous())
        )
        dense = model(input_ids=ids, logits_to_keep=1).logits
        handle.remove()
    assert seen == [True]  # a view of the last of seven positions has gaps
    assert torch.equal(dense, expected)
    assert not model.lm_head._forward_pre_hooks
