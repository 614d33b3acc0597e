"""What every fusion keeps to, and cross-attention against torch's own multi-head attention."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.errors import ConfigurationError
from climafuse.fusion import CrossAttentionFusion, FiLMFusion, Fusion, GatedAdditionFusion, PrefixFusion
from climafuse.fusion.base import text_scale
from climafuse.model.rows import expand_rows, fuse_flat, select_rows
from climafuse.registry import FUSIONS
from tests.fusion.small import SMALL, changes_text, small_fusion

D, C, M = 12, 10, 7
BUILT_IN = tuple(FUSIONS)  # before any test registers another
every_fusion = pytest.mark.parametrize("name", SMALL)
every_fusion_in_place = pytest.mark.parametrize("name", [*filter(changes_text, SMALL)])


def make(name: str, *, gates: float = 0.5) -> Fusion:
    return small_fusion(name, D, C, gates=gates)


def climate(*, rows: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> ClimateTokens:
    """Random tokens; row 1 has two that are not valid, row 2 (if there is one) no valid one."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, M, dtype=torch.bool)
    mask[1:2, [0, 4]] = False
    mask[2:3] = False
    nowhere = torch.full((rows, M), torch.nan)
    states = torch.randn(rows, M, C, generator=generator, dtype=torch.float64).to(dtype)
    return ClimateTokens(states, mask, nowhere, nowhere, nowhere)


def text(*, rows: int = 3, length: int = 4, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(rows, length, D, generator=generator, dtype=torch.float64).to(dtype)


def test_every_built_in_fusion_is_in_the_list() -> None:
    # One that is not would be tried by no contract.
    assert {name.split()[0] for name in SMALL} == set(BUILT_IN)


@every_fusion_in_place
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_zero_gates_leave_text_unchanged_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    fusion = make(name, gates=0.0)
    states = text(dtype=dtype)
    states[0, 0] = 0.0  # padding of flat batches
    states[0, 1, 0] = 3e4  # the massive activations of language models
    fused = fusion(states, climate())
    assert fused.dtype == dtype
    assert torch.equal(fused, states)


@every_fusion_in_place
def test_trained_gates_change_text_by_its_own_size(name: str) -> None:
    fusion = make(name)
    change = fusion(text(), climate()) - text()
    assert change[:2].abs().max() > 0.1
    # Text a thousand times as large, of any block or model, is changed a thousand times as much.
    larger = fusion(1000 * text(), climate()) - 1000 * text()
    torch.testing.assert_close(larger, 1000 * change, rtol=1e-3, atol=0.5)


@every_fusion_in_place
def test_a_row_without_a_valid_token_leaves_its_text_unchanged(name: str) -> None:
    fused = make(name)(text(), climate())
    assert torch.equal(fused[2], text()[2])
    assert not torch.equal(fused[0], text()[0])
    assert fused.isfinite().all()


@every_fusion
def test_a_row_without_a_valid_token_has_finite_gradients(name: str) -> None:
    fusion = make(name)
    given, states = climate(), text().requires_grad_()
    fused = fusion(states, given)
    (
        fused if changes_text(name) else fused[:2]
    ).square().sum().backward()  # what a prefix gives for it is not seen
    assert states.grad is None or states.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


@every_fusion
def test_masked_tokens_have_no_influence(name: str) -> None:
    fusion = make(name)
    given = climate()
    states = torch.where(given.mask.unsqueeze(-1), given.states, torch.full_like(given.states, 1e4))
    changed = fusion(text(), replace(given, states=states))
    torch.testing.assert_close(changed[:2], fusion(text(), given)[:2])
    # Leaving them out is the same as masking them.
    kept = given.mask[1]
    without = ClimateTokens(
        *(
            tensor[1:2, kept]
            for tensor in (given.states, given.mask, given.latitude, given.longitude, given.time)
        )
    )
    torch.testing.assert_close(fusion(text()[1:2], without), fusion(text(), given)[1:2])


@every_fusion
def test_the_order_of_tokens_does_not_matter(name: str) -> None:
    given = climate()
    order = torch.randperm(M, generator=torch.Generator().manual_seed(2))
    shuffled = replace(given, states=given.states[:, order], mask=given.mask[:, order])
    torch.testing.assert_close(make(name)(text(), shuffled), make(name)(text(), given))


@every_fusion_in_place
def test_positions_and_rows_do_not_see_each_other(name: str) -> None:
    fusion = make(name)
    whole = fusion(text(), climate())
    for row in range(3):
        for position in range(4):
            alone = fusion(
                text()[row : row + 1, position : position + 1], select_rows(climate(), torch.tensor([row]))
            )
            torch.testing.assert_close(alone[0, 0], whole[row, position])


@every_fusion
def test_gradients_agree_with_finite_differences(name: str) -> None:
    fusion = copy.deepcopy(make(name)).double()
    given = climate(dtype=torch.float64)
    states = text(dtype=torch.float64)
    names, parameters = zip(*fusion.named_parameters(), strict=True)

    def fused(climate_states: Tensor, *values: Tensor) -> Tensor:
        tokens = replace(given, states=climate_states)
        return torch.func.functional_call(fusion, dict(zip(names, values, strict=True)), (states, tokens))

    inputs = (given.states.requires_grad_(), *(p.detach().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(fused, inputs, fast_mode=True)


@every_fusion
def test_gradients_reach_every_parameter(name: str) -> None:
    fusion = make(name).train()
    weight = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(3))
    (fusion(text(), climate()) * weight).sum().backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 1e-4, key


@every_fusion_in_place
def test_only_gates_learn_while_they_are_zero(name: str) -> None:
    # With closed gates the rest has no gradient yet; the gates themselves must, or nothing ever moved.
    fusion = make(name, gates=0.0)
    fusion(text(), climate()).square().sum().backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()) == key.endswith("gate"), key


# ---- Cross-attention


def reference(fusion: CrossAttentionFusion) -> nn.MultiheadAttention:
    """torch's own attention with the same weights; its width is that of all heads together."""
    width = fusion.query.out_features
    attention = nn.MultiheadAttention(width, fusion.heads, kdim=C, vdim=C, bias=True, batch_first=True)
    with torch.no_grad():
        attention.q_proj_weight.copy_(torch.eye(width))  # the query comes projected
        attention.k_proj_weight.copy_(fusion.key.weight)
        attention.v_proj_weight.copy_(fusion.value.weight)
        attention.in_proj_bias.zero_()
        attention.in_proj_bias[2 * width :] = fusion.value.bias
        attention.out_proj.weight.copy_(torch.eye(width))
        attention.out_proj.bias.zero_()
    return attention


def test_cross_attention_is_that_of_torch() -> None:
    fusion = make("cross_attention")
    assert isinstance(fusion, CrossAttentionFusion)
    assert fusion.feed_forward is not None
    states, given = text(rows=2), climate(rows=2)
    normed = fusion.norm(states)
    attended, weights = reference(fusion)(
        fusion.query(normed),
        given.states,
        given.states,
        key_padding_mask=~given.mask,
        average_attn_weights=False,
    )
    answer = fusion.output(attended)
    size = states.pow(2).mean(dim=-1, keepdim=True).sqrt()
    # The formula of the class's docstring.
    expected = states + size * (
        fusion.attention_gate * answer + fusion.feed_forward_gate * fusion.feed_forward(normed + answer)
    )
    torch.testing.assert_close(fusion(states, given), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fusion.attention(states, given), weights, rtol=1e-4, atol=1e-6)


def test_attention_weights_of_every_row_sum_to_one_over_valid_tokens() -> None:
    fusion = make("cross_attention")
    assert isinstance(fusion, CrossAttentionFusion)
    given = climate()
    weights = fusion.attention(text(dtype=torch.bfloat16), given)
    assert weights.shape == (3, 2, 4, M)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 4))
    assert not weights[1, ..., ~given.mask[1]].any()


def test_gated_addition_by_its_formula() -> None:
    fusion = make("gated_addition")
    assert isinstance(fusion, GatedAdditionFusion)
    states, given = text(rows=1), climate(rows=1)
    scores = fusion.queries(given.states[0])  # [M, queries]
    pooled = [scores[:, q].softmax(dim=0) @ given.states[0] for q in range(2)]
    vector = fusion.projection(torch.cat(pooled))
    size = states.pow(2).mean(dim=-1, keepdim=True).sqrt()
    expected = states + size * fusion.gate * fusion.feed_forward(fusion.norm(states) + vector)
    torch.testing.assert_close(fusion(states, given), expected, rtol=1e-4, atol=1e-5)


def test_film_by_its_formula() -> None:
    fusion = make("film")
    assert isinstance(fusion, FiLMFusion)
    states, given = text(rows=1), climate(rows=1)
    scores = fusion.queries(given.states[0])  # [M, queries]
    pooled = fusion.projection(torch.cat([scores[:, q].softmax(dim=0) @ given.states[0] for q in range(2)]))
    gamma, beta = fusion.modulation[1](nn.functional.gelu(pooled)).view(2, D)
    for position in range(4):
        state = states[0, position]
        size = (state @ state / D).sqrt()
        expected = (1 + fusion.scale_gate * gamma) * state + size * fusion.shift_gate * beta
        torch.testing.assert_close(fusion(states, given)[0, position], expected, rtol=1e-4, atol=1e-5)


def test_a_prefix_by_its_formula() -> None:
    fusion = make("prefix")
    assert isinstance(fusion, PrefixFusion)
    given = climate(rows=2)
    attention = nn.MultiheadAttention(16, 2, kdim=C, vdim=C, batch_first=True)
    with torch.no_grad():
        attention.q_proj_weight.copy_(torch.eye(16))
        attention.k_proj_weight.copy_(fusion.key.weight)
        attention.v_proj_weight.copy_(fusion.value.weight)
        attention.in_proj_bias.zero_()
        attention.in_proj_bias[32:] = fusion.value.bias
        attention.out_proj.weight.copy_(torch.eye(16))
        attention.out_proj.bias.zero_()
    queries = fusion.queries.expand(2, -1, -1)
    attended, _ = attention(queries, given.states, given.states, key_padding_mask=~given.mask)
    hidden = queries + attended
    expected = fusion.norm(fusion.projection(hidden + fusion.feed_forward(hidden)))
    made = fusion(torch.full((2, 4, D), 3.0), given)
    torch.testing.assert_close(made, 3 * expected, rtol=1e-4, atol=1e-4)
    # Untrained, each is of the size of the words.
    torch.testing.assert_close(made.pow(2).mean(dim=-1).sqrt(), torch.full((2, 4), 3.0), rtol=1e-3, atol=0)


def test_a_prefix_has_its_length_however_many_tokens_there_are() -> None:
    fusion = make("prefix")
    assert fusion.num_soft_tokens == 4
    nowhere = torch.full((1, 50), torch.nan)
    many = ClimateTokens(torch.randn(1, 50, C), nowhere.isnan(), nowhere, nowhere, nowhere)
    assert fusion(text(rows=1), many).shape == (1, 4, D)


def test_text_scale_is_the_root_mean_square() -> None:
    # (3, 4) has mean square 12.5; the slope of sqrt((x² + y²) / 2) is (x, y) / 2 over it, and none at zero.
    states = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], requires_grad=True)
    scale = text_scale(states.bfloat16())
    assert scale.flatten().tolist() == pytest.approx([12.5**0.5, 0.0])
    assert scale.dtype == torch.float32
    text_scale(states).sum().backward()
    assert states.grad.flatten().tolist() == pytest.approx([1.5 / 12.5**0.5, 2.0 / 12.5**0.5, 0.0, 0.0])


@every_fusion
def test_options_are_positive(name: str) -> None:
    name, *_ = name.split()
    for option in SMALL[name]:
        least = 0 if (name, option) == ("cross_attention", "feed_forward") else 1
        with pytest.raises(ConfigurationError, match=rf"fusion\.options\.{option}.*at least {least}"):
            FUSIONS.create(name, D, C, **{option: least - 1})


# ---- What is kept while text is generated


@every_fusion
@torch.no_grad()
def test_what_is_kept_serves_the_same_climate_only(name: str) -> None:
    fusion = make(name)
    kept = replace(climate(), memory={})
    fresh = fusion(text(), climate())
    for _ in range(2):
        assert torch.equal(fusion(text(), kept), fresh)
    assert kept.memory is not None
    assert set(kept.memory) <= {fusion}
    # Other states, the same states under another mask, other rows: each has its own memory.
    other = replace(climate(seed=5), memory={})
    assert torch.equal(fusion(text(), other), fusion(text(), climate(seed=5)))
    unmasked = replace(climate(), mask=torch.ones_like(kept.mask))
    assert torch.equal(fusion(text(), unmasked), fusion(text(), replace(unmasked, memory={})))
    rows = torch.tensor([1, 0, 0])
    assert torch.equal(fusion(text(), select_rows(kept, rows)), fusion(text(), select_rows(climate(), rows)))
    assert torch.equal(fusion(text(), kept), fresh)


@every_fusion
def test_what_is_kept_is_used(name: str) -> None:
    # Otherwise the tests around this one prove nothing. A fusion may keep nothing: then it looks anew.
    fusion = make(name)
    kept = replace(climate(), memory={})
    with torch.no_grad():
        before = fusion(text(), kept)
        assert kept.memory or name not in {"cross_attention", "film", "gated_addition", "prefix"}
        kept.states.mul_(2)
        assert torch.equal(fusion(text(), kept), before) == bool(kept.memory)
        assert not torch.equal(fusion(text(), replace(kept, memory=None)), before)


@every_fusion
def test_nothing_is_kept_outside_of_generation(name: str) -> None:
    fusion = make(name)
    given = climate()
    with torch.no_grad():
        before = fusion(text(), given)
        for parameter in fusion.parameters():
            parameter.data.add_(0.1)  # not even seen by the version counter of the tensor
        after = fusion(text(), given)
    assert given.memory is None
    assert not torch.allclose(before[:2], after[:2])
    assert torch.equal(after, copy.deepcopy(fusion)(text(), given))


@every_fusion
def test_training_neither_fills_nor_reads_what_is_kept(name: str) -> None:
    fusion = make(name)
    kept = replace(climate(), memory={})
    with torch.no_grad():
        fusion(text(), kept)
    assert kept.memory is not None
    for tensor in _tensors(kept.memory.get(fusion, ())):
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
    trained = fusion(text(), kept)
    trained.sum().backward()
    # What is made of the climate alone was made in the graph, not taken from memory.
    assert all(parameter.grad is not None for parameter in fusion.parameters())
    given = climate(rows=2)
    states = given.states.requires_grad_()
    fusion(text(rows=2), replace(given, memory=kept.memory)).sum().backward()
    assert states.grad is not None
    empty = replace(climate(), memory={})
    fusion(text(), empty)
    assert empty.memory == {}


# ---- Flat positions, several rows of text to a window


@every_fusion_in_place
@pytest.mark.parametrize("rows", [[0, 0, 0], [2, 0, 1, 0, 1, 1], [1, 1, 2, 2, 0, 0, 0, 1], [2], [1, 1]])
def test_fusing_flat_positions_equals_row_by_row(name: str, rows: list[int]) -> None:
    fusion = make(name)
    states = text(rows=1, length=len(rows))[0]
    fused = fuse_flat(fusion, states, climate(), torch.tensor(rows))
    for position, row in enumerate(rows):
        alone = fusion(states[position].view(1, 1, D), select_rows(climate(), torch.tensor([row])))
        torch.testing.assert_close(fused[position], alone[0, 0])


def test_gradients_of_flat_positions_equal_those_of_rows() -> None:
    fusion = make("cross_attention")
    rows = torch.tensor([1, 0, 0, 1, 0])
    grads = []
    for flat in (True, False):
        given, states = climate(rows=2), text(rows=1, length=5)[0].requires_grad_()
        given.states.requires_grad_()
        if flat:
            fused = fuse_flat(fusion, states, given, rows)
        else:
            fused = fusion(states.unsqueeze(1), select_rows(given, rows)).squeeze(1)
        (fused * torch.arange(5 * D).view(5, D)).sum().backward()
        grads.append((states.grad, given.states.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_rows_are_repeated_for_beams_as_transformers_repeats_texts() -> None:
    given = climate(rows=2)
    assert expand_rows(given, 2) is given
    expanded = expand_rows(given, 6)
    for row in range(6):
        assert torch.equal(expanded.states[row], given.states[row // 3])
        assert torch.equal(expanded.mask[row], given.mask[row // 3])


def _tensors(value: object) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)  # type: ignore[return-value]
