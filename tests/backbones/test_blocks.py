"""Sites, attaching, resuming, gathering, on eight architectures. Oracle: the uninterrupted forward."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from climafuse.backbones import (
    attach,
    find_blocks,
    freeze,
    gather,
    num_blocks_below,
    prefix_states,
    resolve_sites,
    resume,
)
from climafuse.errors import BackboneError, ConfigurationError, ModelInputError
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

SITES = ("input", 1, 3, "output")
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@functools.cache
def _model(architecture: str):
    model = tiny_model(architecture)
    freeze(model)
    return model


def _inputs(architecture: str) -> dict[str, torch.Tensor]:
    """Two texts of unequal length, padded on the left, longer than the windows of local attention (8)."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    texts = [
        "What is the wind speed over there?",
        "What is the mean temperature of the sea in that box today?",
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert batch["attention_mask"][0, 0] == 0  # the case is what it says
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )


def _checkpoint(model) -> None:
    """Recompute activations in the backward pass; the method has a new name since transformers 5.2x."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is not None:
        enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))  # bits, so that NaN counts too


# --- finding


@pytest.mark.parametrize(
    ("architecture", "path"),
    [
        ("gpt2", "transformer.h"),
        ("opt", "model.decoder.layers"),
        ("gpt_neo", "transformer.h"),
        ("gpt_neox", "gpt_neox.layers"),
        ("llama", "model.layers"),
        ("qwen2", "model.layers"),
        ("mistral", "model.layers"),
        ("gemma3", "model.layers"),
    ],
)
def test_blocks_are_found_where_each_architecture_keeps_them(architecture, path):
    layout = find_blocks(_model(architecture))
    assert layout.path == path
    assert layout.num_blocks == 4
    assert layout.hidden_size == 32
    assert layout.head is _model(architecture).get_output_embeddings()


def test_lists_inside_blocks_are_not_mistaken_for_the_blocks():
    model = tiny_model("llama")
    for block in model.model.layers:
        block.experts = nn.ModuleList(nn.Identity() for _ in range(4))  # as many as there are blocks
    assert find_blocks(model).path == "model.layers"


def test_two_candidates_are_refused_by_name():
    model = tiny_model("llama")
    model.others = nn.ModuleList(nn.Identity() for _ in range(4))
    with pytest.raises(BackboneError, match=r"model\.layers, others"):
        find_blocks(model)


def test_no_candidate_is_refused():
    model = tiny_model("llama")
    model.model.layers = model.model.layers[:3]
    with pytest.raises(BackboneError, match="num_hidden_layers = 4 blocks; received none"):
        find_blocks(model)


# --- sites


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ("input", ("input",)),
        ("output", ("output",)),
        (7, (7,)),
        ([20, 10], (10, 20)),
        ([-1], (29,)),
        ((20, "output"), (20, "output")),
        (["output", 3, "input"], ("input", 3, "output")),
        ({"last": 2}, (28, 29)),
        ({"every": 10}, (0, 10, 20)),  # the sites of the feasibility run
        ({"every": 30}, (0,)),
        ([{"every": 15}, 20, "output"], (0, 15, 20, "output")),
    ],
)
def test_sites_of_thirty_blocks(sites, expected):
    assert resolve_sites(sites, 30) == expected


@pytest.mark.parametrize(
    "sites",
    [
        [],
        {},
        "middle",
        None,
        True,
        1.0,
        30,
        -31,
        [1, 1],
        [29, -1],
        ["input", 0],
        [{"last": 2}, 28],
        {"last": 0},
        {"last": 31},
        {"every": "2"},
        {"every": True},
        {"first": 2},
        {"last": 1, "every": 2},
    ],
)
def test_malformed_sites_are_usage_errors(sites):
    with pytest.raises(ConfigurationError, match=r"^sites: expected"):
        resolve_sites(sites, 30)


def test_blocks_below_a_site():
    assert [num_blocks_below(site, 30) for site in ("input", 0, 7, "output")] == [0, 0, 7, 30]


# --- attaching


@every_architecture
def test_a_function_that_changes_nothing_leaves_the_logits_bit_equal(architecture):
    model, inputs, seen = _model(architecture), _inputs(architecture), []
    bare = model(**inputs).logits
    before = _hooks(model)
    with attach(model, ["input", 1, 2, 3, "output"], lambda site, hidden: seen.append(site) or hidden):
        assert _same(model(**inputs).logits, bare)
    assert seen == ["input", 1, 2, 3, "output"]
    assert _hooks(model) == before
    assert _same(model(**inputs).logits, bare)
    assert len(seen) == 5  # nothing was called after the end


@every_architecture
@pytest.mark.parametrize("site", SITES)
def test_what_the_function_returns_is_what_the_model_goes_on_with(architecture, site):
    model, inputs = _model(architecture), _inputs(architecture)
    bare = model(**inputs).logits

    def mark(_, hidden):
        changed = hidden.clone()
        changed[:, 7] += torch.linspace(-1, 1, 32)  # uneven: a layer norm undoes an even shift
        return changed

    with attach(model, site, mark):
        marked = model(**inputs).logits
    changed = (marked != bare).any(-1)  # [B, S]
    assert changed[:, 7].all()
    assert not changed[:, :7].any()  # causal: nothing flows back
    assert changed[:, 8:].any() == (site != "output")  # above the blocks, nothing flows forward either


@every_architecture
def test_input_and_output_are_the_places_they_are_said_to_be(architecture):
    model, inputs, seen = _model(architecture), _inputs(architecture), {}
    with attach(model, ["input", "output"], lambda site, hidden: seen.setdefault(site, hidden)):
        result = model(**inputs, output_hidden_states=True)
    # transformers reports the embeddings first; the head of these is a plain matrix, capped in Gemma 3.
    assert torch.equal(seen["input"], result.hidden_states[0])
    logits = seen["output"] @ model.get_output_embeddings().weight.T
    if architecture == "gemma3":
        logits = 30.0 * torch.tanh(logits / 30.0)
    torch.testing.assert_close(logits, result.logits, rtol=1e-5, atol=1e-5)


@every_architecture
def test_gradients_reach_the_function_with_and_without_checkpointing(architecture):
    inputs, gradients = _inputs(architecture), []
    for checkpointing in (False, True):
        model = tiny_model(architecture)
        freeze(model)
        model.train()  # checkpointing is off in eval mode
        if checkpointing:
            _checkpoint(model)
        scale = torch.ones(32, requires_grad=True)
        calls = []
        with attach(model, [1, 3], lambda site, hidden, s=scale, c=calls: c.append(site) or hidden * s):
            model(**inputs, use_cache=False).logits.square().mean().backward()
        gradients.append(scale.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_generation_passes_every_step_through_the_function(architecture):
    model, inputs, lengths = _model(architecture), _inputs(architecture), []
    bare = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with attach(model, 2, lambda site, hidden: lengths.append(hidden.shape[1]) or hidden):
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), bare)
    assert lengths == [inputs["input_ids"].shape[1], *[1] * (len(lengths) - 1)]


@pytest.mark.parametrize("change", [lambda h: h[:, :-1], lambda h: h.double()])
def test_a_function_that_changes_shape_or_type_is_refused(change):
    model, inputs = _model("llama"), _inputs("llama")
    with (
        attach(model, 1, lambda site, hidden: change(hidden)),
        pytest.raises(ModelInputError, match="hidden states at site 1: expected"),
    ):
        model(**inputs)


def test_a_site_that_is_never_passed_is_an_error_not_a_bare_model():
    model, inputs = tiny_model("llama"), _inputs("llama")
    head = model.lm_head
    model.set_output_embeddings(nn.Linear(32, head.out_features))  # another module than forward calls
    model.get_output_embeddings = lambda: nn.Linear(32, head.out_features)
    with (
        attach(model, "output", lambda site, hidden: hidden),
        pytest.raises(
            BackboneError, match=r"passing every site in a forward call; received none at \['output'\]"
        ),
    ):
        model(**inputs)


# --- resuming


@every_architecture
@pytest.mark.parametrize("site", ["input", 1, 2, 3, "output"])
def test_resuming_from_stored_states_equals_the_full_run(architecture, site):
    model, inputs = _model(architecture), _inputs(architecture)
    full = model(**inputs, use_cache=False).logits
    before, ran = _hooks(model), []
    states = prefix_states(model, site, **inputs)
    norms = [
        next(m for m in block.modules() if "Norm" in type(m).__name__) for block in find_blocks(model).blocks
    ]
    with resume(model, site, states):
        handles = [norm.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, norm in enumerate(norms)]
        resumed = model(**inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    assert _same(resumed, full)
    assert ran == list(range(num_blocks_below(site, 4), 4))  # what lies below did not run
    assert _hooks(model) == before
    assert _same(model(**inputs, use_cache=False).logits, full)


@every_architecture
def test_the_model_goes_on_from_the_stored_states_and_not_from_its_input(architecture):
    model, inputs = _model(architecture), _inputs(architecture)
    other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    full = model(**other, use_cache=False).logits
    states = prefix_states(model, 2, **other)
    with resume(model, 2, states):
        assert _same(model(**inputs, use_cache=False).logits, full)


@every_architecture
def test_a_function_at_the_resumed_site_receives_the_stored_states_in_either_nesting(architecture):
    model, inputs = _model(architecture), _inputs(architecture)

    def shift(_, hidden):
        return hidden + torch.linspace(-1, 1, 32)

    with attach(model, [2, "output"], shift):
        full = model(**inputs, use_cache=False).logits
        states = prefix_states(model, 2, **inputs)  # does not contain the shift
        with resume(model, 2, states):
            assert _same(model(**inputs, use_cache=False).logits, full)
    with resume(model, 2, states), attach(model, [2, "output"], shift):
        assert _same(model(**inputs, use_cache=False).logits, full)


def test_resuming_with_gradient_checkpointing_gives_equal_gradients():
    inputs, gradients = _inputs("llama"), []
    for resumed in (False, True):
        model = tiny_model("llama")
        freeze(model)
        model.train()
        _checkpoint(model)
        scale = torch.ones(32, requires_grad=True)
        with attach(model, 2, lambda site, hidden, s=scale: hidden * s):
            if resumed:
                with resume(model, 2, prefix_states(model, 2, **inputs)):
                    model(**inputs, use_cache=False).logits.square().mean().backward()
            else:
                model(**inputs, use_cache=False).logits.square().mean().backward()
        gradients.append(scale.grad)
    assert torch.equal(*gradients)


def test_a_function_below_the_resumed_site_is_refused_in_either_order():
    model, inputs = _model("llama"), _inputs("llama")
    before = _hooks(model)
    states = prefix_states(model, 2, **inputs)
    with attach(model, 1, lambda site, hidden: hidden):
        with pytest.raises(ModelInputError, match="a function at 1, which lies below"):
            prefix_states(model, 2, **inputs)
        with (
            pytest.raises(ModelInputError, match="a function at 1, which lies below"),
            resume(model, 2, states),
        ):
            pass
    with resume(model, 2, states), pytest.raises(ModelInputError, match="a function at 1, which lies below"):
        attach(model, 1, lambda site, hidden: hidden)
    assert _hooks(model) == before


def test_states_of_another_input_are_refused():
    model, inputs = _model("gpt_neo"), _inputs("gpt_neo")
    before = _hooks(model)
    states = prefix_states(model, 2, **inputs)
    with (
        resume(model, 2, states[:, 1:]),
        pytest.raises(ModelInputError, match=r"^states: expected hidden states"),
    ):
        model(**inputs, use_cache=False)
    with resume(model, 2, states.double()), pytest.raises(ModelInputError, match="float64"):
        model(**inputs, use_cache=False)
    assert _hooks(model) == before


# --- gathering


@every_architecture
def test_gathered_logits_are_those_of_the_full_run_at_the_labels(architecture):
    model, inputs = _model(architecture), _inputs(architecture)
    before = _hooks(model)
    full = model(**inputs).logits
    positions = torch.zeros(full.shape[:2], dtype=torch.bool)
    positions[0, -3:] = positions[1, 5] = True
    with gather(model, positions):
        gathered = model(**inputs).logits
    assert gathered.shape == (1, 4, full.shape[-1])
    # Gemma 3 caps after its head; a matrix of fewer rows may round otherwise in the last bit.
    torch.testing.assert_close(gathered[0], full[positions], rtol=1e-6, atol=1e-6)
    assert _hooks(model) == before


def test_a_forward_that_another_library_has_wrapped_is_kept_and_used():
    model, inputs, calls = tiny_model("llama"), _inputs("llama"), []
    head = model.lm_head
    inner = head.forward
    head.forward = wrapped = lambda hidden: calls.append(tuple(hidden.shape)) or inner(hidden)
    with gather(model, inputs["attention_mask"].bool()):
        model(**inputs)
    assert calls == [(1, int(inputs["attention_mask"].sum()), 32)]
    assert head.forward is wrapped


def test_a_function_at_the_output_sees_every_position_whichever_was_first():
    model, inputs, shapes = _model("gemma3"), _inputs("gemma3"), []
    positions = inputs["attention_mask"].bool()
    function = lambda site, hidden: shapes.append(tuple(hidden.shape)) or hidden  # noqa: E731
    with gather(model, positions), attach(model, "output", function):
        model(**inputs)
    with attach(model, "output", function), gather(model, positions):
        model(**inputs)
    assert shapes == [(*positions.shape, 32)] * 2


@pytest.mark.parametrize(
    "positions", [torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 14, dtype=torch.long)]
)
def test_positions_that_do_not_fit_are_refused(positions):
    model, inputs = _model("llama"), _inputs("llama")
    with (
        gather(model, positions),
        pytest.raises(ModelInputError, match=r"^positions: expected a bool tensor"),
    ):
        model(**inputs)


def test_a_model_narrower_at_its_output_says_so():
    from transformers import AutoModelForCausalLM

    from tests.tiny import tiny_config

    config = tiny_config("opt")
    config.word_embed_proj_dim = 16  # as in OPT-350M: embeddings and head are half as wide as the blocks
    model = AutoModelForCausalLM.from_config(config).eval()
    layout, widths = find_blocks(model), {}
    with attach(model, ["input", 2, "output"], lambda site, h: widths.setdefault(site, h.shape[-1]) and h):
        model(**_inputs("opt"))
    assert widths == {"input": 32, 2: 32, "output": 16}
    assert {site: layout.width(site) for site in widths} == widths
