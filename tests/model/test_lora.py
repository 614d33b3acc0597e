"""Adapters in the backbone. Oracles: PEFT's formula by hand, a backbone that nobody touched, the names that are there.

What holds for every architecture is in tests/matrix/test_lora.py.
"""

from __future__ import annotations

import sys
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import Llama4ForCausalLM, Llama4TextConfig, MambaConfig, MambaForCausalLM

from climafuse.backbones import LoadedBackbone, hash_parameters, with_lora, without_adapters
from climafuse.backbones.lora import LoraOptions
from climafuse.errors import (
    BackboneError,
    BackboneMismatchError,
    ConfigurationError,
    ModelInputError,
    TrainingError,
)
from climafuse.model import ClimateTextForCausalLM, PrefixStore
from climafuse.training import load_config
from climafuse.training.config import LoraConfig, TrainingConfig
from climafuse.training.optim import parameter_groups, trainable_parts
from climafuse.training.surface import check_model
from tests.model.build import ENCODER, make_batch, make_model, statistics
from tests.tiny import tiny_backbone, tiny_model, tiny_tokenizer


def open_adapters(model: nn.Module, size: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def adapted_names(model: nn.Module) -> set[str]:
    """Block and layer of each adapter."""
    return {
        ".".join(name.split(".lora_A.")[0].split(".")[-3:])
        for name, _ in model.named_parameters()
        if ".lora_A." in name
    }


# ---- What is adapted


def test_an_adapter_adds_b_a_x_in_float32() -> None:
    model = with_lora(
        tiny_backbone(dtype=torch.bfloat16).model, {"rank": 2, "alpha": 6, "target_modules": ["q_proj"]}
    )
    open_adapters(model)
    layer: Any = model.model.layers[1].self_attn.q_proj
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((2, 32), (32, 2), torch.float32, torch.float32)
    frozen = torch.nn.functional.linear(x, layer.base_layer.weight)
    expected = (frozen.float() + 6 / 2 * (x.float() @ a.T @ b.T)).bfloat16()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ["q_proj"], "layers": [0, -1]}, {"0.self_attn.q_proj", "3.self_attn.q_proj"}),
        ({"target_modules": ["mlp.up_proj"], "layers": {"last": 1}}, {"3.mlp.up_proj"}),
        ({"target_modules": ["q_proj", "down_proj"], "layers": {"every": 3}},
         {f"{n}.{name}" for n in (0, 3) for name in ("self_attn.q_proj", "mlp.down_proj")}),
        ({"layers": 2}, {f"2.self_attn.{x}_proj" for x in "qkvo"}
         | {f"2.mlp.{x}_proj" for x in ("gate", "up", "down")}),
    ],
)  # fmt: skip
def test_layers_and_targets(options: dict[str, Any], expected: set[str]) -> None:
    assert adapted_names(with_lora(tiny_backbone().model, {"rank": 1, **options})) == expected


def test_by_default_every_linear_layer_of_every_block_and_not_the_head() -> None:
    for architecture in ("llama", "gpt2", "gpt_neox", "opt"):
        backbone = tiny_backbone(architecture).model
        model = with_lora(backbone)
        names = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
        # Any matrix of a block that is no embedding is one of a linear layer.
        matrices = {
            name.removesuffix(".weight")
            for name, p in backbone.named_parameters()
            if p.ndim == 2 and (".layers." in name or ".h." in name)
        }
        assert names == matrices


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["query"]}, r"lora\.target_modules.*mlp\.down_proj.*received 'query'"),
        ({"target_modules": ["lm_head"]}, "self_attn.q_proj"),  # outside the blocks
        ({"target_modules": ["proj"]}, "received 'proj'"),  # a part of a name is none
        ({"target_modules": "q_proj"}, "a list"),
        ({"target_modules": []}, "a list"),
        ({"layers": "output"}, r"lora\.layers"),
        ({"layers": [4]}, "blocks from -4 to 3"),
        ({"rank": 0}, r"lora\.rank"),
        ({"rank": True}, r"lora\.rank"),
        ({"alpha": "16"}, r"lora\.alpha"),
        ({"dropout": 1.0}, r"lora\.dropout"),
        ({"ranks": 4}, "options among rank, .*received ranks"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model(lora=options)


def test_layers_that_cannot_be_adapted_are_refused_or_passed_over() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2))
    with pytest.raises(ConfigurationError, match=r"PEFT can adapt; received .*out_proj"):
        with_lora(mamba)
    config = Llama4TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, intermediate_size_mlp=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_local_experts=2,
    )  # fmt: skip
    adapted = with_lora(Llama4ForCausalLM(config))  # its router is a linear layer that returns two tensors
    adapted(input_ids=torch.arange(8)[None]).logits.sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigurationError, match=r"climafuse\[lora\]"):
        make_model(lora={"rank": 2})


# ---- The backbone that was given


def test_the_given_backbone_stays_what_it_was() -> None:
    backbone = tiny_backbone()
    ids = torch.arange(4, 12).view(1, 8)
    before = backbone.model(input_ids=ids).logits
    modules = [type(module) for module in backbone.model.modules()]
    kwargs: dict[str, Any] = {"statistics": statistics(), "encoder_options": ENCODER}
    one = ClimateTextForCausalLM.from_backbone(backbone, lora={"rank": 2}, **kwargs)
    other = ClimateTextForCausalLM.from_backbone(backbone, lora={"rank": 3, "layers": [0]}, **kwargs)
    plain = ClimateTextForCausalLM.from_backbone(backbone, **kwargs)
    open_adapters(one)
    assert not torch.allclose(one.backbone(input_ids=ids).logits, before)
    for untouched in (backbone.model, plain.backbone, other.backbone):
        assert torch.equal(untouched(input_ids=ids).logits, before)
    assert [type(module) for module in backbone.model.modules()] == modules
    assert not [name for name, p in plain.backbone.named_parameters() if p.requires_grad]
    # Frozen weights are shared, not copied; tied ones stay tied.
    weights = {p.data_ptr() for p in backbone.model.parameters()}
    assert {p.data_ptr() for p in one.backbone.parameters() if not p.requires_grad} == weights
    assert one.backbone.lm_head.weight is one.backbone.model.embed_tokens.weight


def test_moving_an_adapted_model_leaves_the_given_one_where_it_is() -> None:
    backbone = tiny_backbone()
    model = with_lora(backbone.model)
    model.double()  # as a move to another device does, parameter by parameter
    assert backbone.model.dtype == torch.float32
    assert hash_parameters(backbone.model) == backbone.identity["content_hash"]


def test_a_model_with_adapters_is_no_backbone() -> None:
    injected = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), tiny_model())
    with pytest.raises(BackboneError, match="merge_and_unload"):
        LoadedBackbone.from_model(injected, tiny_tokenizer(), id="tiny")
    loaded = tiny_backbone()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), loaded.model)
    with pytest.raises(BackboneError, match="merge_and_unload"):
        ClimateTextForCausalLM.from_backbone(loaded, statistics=statistics(), lora={"rank": 2})


def test_the_hash_sees_every_frozen_weight_of_an_adapted_model() -> None:
    model = make_model(lora={"rank": 2})
    before = hash_parameters(model.backbone)
    assert before == model.backbone_identity["content_hash"]
    open_adapters(model)
    assert hash_parameters(model.backbone) == before
    for name, parameter in model.backbone.named_parameters():
        if not parameter.requires_grad:
            with torch.no_grad():
                parameter.view(-1)[0] += 1
            assert hash_parameters(model.backbone) != before, name
            with torch.no_grad():
                parameter.view(-1)[0] -= 1


def test_another_backbone_is_refused(tmp_path: Any) -> None:
    make_model(lora={"rank": 2}).save_pretrained(tmp_path)
    with pytest.raises(BackboneMismatchError):
        ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=tiny_backbone(seed=1))


# ---- Where stored states end


@pytest.mark.parametrize(
    ("sites", "layers", "expected"),
    [
        ("output", [2], 2),
        ("output", None, 0),
        (1, [2, 3], 1),
        (2, [1], 1),
        (2, [2], 2),  # the fusion sits before block 2
        ("input", [0], "input"),
        ({"last": 1}, {"last": 1}, 3),
    ],
)
def test_states_depend_on_the_text_alone_up_to_the_first_site_or_adapter(
    sites: Any, layers: Any, expected: Any
) -> None:
    model = make_model(sites=sites, lora={"rank": 1, "layers": layers})
    assert model.prefix_site == expected
    assert make_model(sites=sites).prefix_site == model.sites[0]


def test_states_from_above_an_adapter_are_refused() -> None:
    model = make_model(sites="output", lora={"rank": 1, "layers": [2]})
    with pytest.raises(ModelInputError, match="prefix_site"):
        PrefixStore(model.backbone, model.sites[0])
    # Even where they were stored while nothing was trained, or come from another model.
    model.prefix_store = PrefixStore(tiny_backbone().model, "output")
    with pytest.raises(ModelInputError, match=r"prefix_store\.site"):
        model(**make_batch(model))
    model.prefix_store = PrefixStore(model.backbone, 1)
    with pytest.raises(ModelInputError, match=r"prefix_store\.site"):
        model(**make_batch(model))


def test_blocks_below_the_adapters_have_no_graph() -> None:
    model = make_model(sites="output", lora={"rank": 1, "layers": [2]})
    requires: dict[int, bool] = {}
    for number, block in enumerate(model.backbone.model.layers):
        block.register_forward_hook(
            lambda module, args, output, number=number: requires.update({number: output.requires_grad})
        )
    model(**make_batch(model)).loss.backward()
    assert requires == {0: False, 1: False, 2: True, 3: True}


def test_what_the_bare_backbone_would_say_is_said_without_adapters() -> None:
    model = make_model(sites="output", lora={"rank": 2})
    batch = make_batch(model)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = make_model(sites="output").likely_tokens(**given, count=3)
    open_adapters(model, 3.0)
    assert torch.equal(model.likely_tokens(**given, count=3), expected)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    bare = tiny_model()(**text).logits
    assert not torch.allclose(model.backbone(**text).logits, bare, atol=0.1)
    with without_adapters(model.backbone):
        assert torch.equal(model.backbone(**text).logits, bare)
    assert not torch.allclose(model.backbone(**text).logits, bare, atol=0.1)


# ---- Training


def test_dropout_follows_training_mode_and_its_generator() -> None:
    model = make_model(sites="output", lora={"rank": 4, "dropout": 0.5})
    open_adapters(model)
    batch = make_batch(model)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model(**batch).loss.item()

    assert loss(0) == loss(1)
    model.train()
    assert loss(0) == loss(0) != loss(1)
    model.eval()
    assert loss(0) == loss(1)


def test_adapters_are_a_group_and_a_part_of_their_own() -> None:
    model = make_model(lora={"rank": 2})
    config = TrainingConfig(learning_rate=1e-2, lora_learning_rate_scale=0.5, weight_decay=0.1)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    adapters = [p for name, p in model.named_parameters() if ".lora_" in name]
    assert len(adapters) == 4 * 7 * 2
    assert [id(p) for p in groups["lora"]["params"]] == [id(p) for p in adapters]
    assert (groups["lora"]["lr"], groups["lora"]["weight_decay"]) == (5e-3, 0.1)
    assert groups["matrices"]["lr"] == 1e-2
    assert set(trainable_parts(model)) == {"encoder", "fusions.1", "fusions.output", "lora"}


def test_what_no_checkpoint_would_hold_is_not_trained() -> None:
    model = make_model(lora={"rank": 2})
    check_model(model)
    model.backbone.lm_head.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"embed_tokens.*lora"):  # tied to the head
        check_model(model)


def test_the_configuration_section() -> None:
    config = load_config(None, ["backbone.lora.rank=4", "backbone.lora.layers={last: 2}"])
    assert config.backbone.lora == LoraConfig(rank=4, layers={"last": 2})
    assert load_config(None).backbone.lora is None
    # Its defaults are those of Python's own door.
    assert vars(LoraConfig()) == vars(LoraOptions())
    with pytest.raises(ConfigurationError, match=r"backbone\.lora\.rank"):
        load_config(None, ["backbone.lora.rank=0"])
    with pytest.raises(ConfigurationError, match=r"backbone\.lora\.ranks.*Did you mean 'rank'"):
        load_config(None, ["backbone.lora.ranks=1"])
