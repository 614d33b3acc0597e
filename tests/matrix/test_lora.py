"""LoRA x backbones: adapters composed with fusions keep every promise the plain model makes.

Oracles: a backbone that was never touched, differences of losses, generation without a cache, a full computation
without stored states, the same run uninterrupted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from climafuse.backbones import hash_parameters
from climafuse.backbones.widening import widen_products
from climafuse.model import ClimateTextForCausalLM, PrefixStore, SampledVocabulary
from climafuse.training import read_log
from climafuse.training.config import LoraConfig
from climafuse.training.pipeline import run
from tests.conftest import Cell
from tests.fusion.small import SMALL, changes_text
from tests.model.build import climate_of, make_batch, make_model
from tests.tiny import ARCHITECTURES, tiny_backbone, tiny_model
from tests.training.runs import make_config, save_backbone, write_climate

FAST = ("llama", "gpt2")  # two kinds of linear layers; the others with --thorough
EXACT = (
    "gpt2",
    "opt",
    "gpt_neox",
)  # others compute norms or attention in float32, whatever their weights are
# Adapters below, at and above fusion sites; "output" makes the only fusion one above every adapter.
PLACES: dict[str, dict[str, Any]] = {
    "all blocks": {"sites": [1, "output"], "lora": {"rank": 3}},
    "some blocks": {"sites": "output", "lora": {"rank": 2, "alpha": 8, "layers": [1, -1]}},
}
every_place = pytest.mark.parametrize(
    "place", ["some blocks", pytest.param("all blocks", marks=pytest.mark.slow)]
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("architecture", ARCHITECTURES if metafunc.config.option.thorough else FAST)


def adapted(architecture: str, place: str, *, trained: bool = True, **options: Any) -> ClimateTextForCausalLM:
    model = make_model(architecture, gates=0.5 if trained else 0.0, **PLACES[place], **options)
    if trained:
        open_adapters(model)
    return model


def open_adapters(model: ClimateTextForCausalLM) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def text_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def loss_of(model: ClimateTextForCausalLM) -> Tensor:
    loss: Tensor = model(**make_batch(model)).loss
    return loss


def gradients(model: ClimateTextForCausalLM) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_place
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_untrained_it_is_the_bare_backbone(
    architecture: str, place: str, dtype: torch.dtype, cell: Cell
) -> None:
    cell("lora", architecture, "bare when untrained")
    model = adapted(architecture, place, trained=False, dtype=dtype)
    batch = make_batch(model)
    logits = model(**text_of(batch), **climate_of(batch)).logits
    bare = tiny_model(architecture, dtype=dtype)
    widen_products(bare)  # where this processor multiplies no bfloat16
    assert torch.equal(logits, bare(**text_of(batch)).logits)
    trained = adapted(architecture, place, dtype=dtype)
    assert not torch.allclose(trained(**text_of(batch), **climate_of(batch)).logits, logits, atol=0.1)


@every_place
def test_training_changes_adapters_and_no_frozen_weight(architecture: str, place: str, cell: Cell) -> None:
    cell("lora", architecture, "frozen unchanged")
    model = adapted(architecture, place, trained=False)
    before = model.backbone_identity["content_hash"]
    assert hash_parameters(model.backbone) == before == tiny_backbone(architecture).identity["content_hash"]
    weights = {name: tensor.clone() for name, tensor in model.trainable_state_dict().items()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    first = loss_of(model).item()
    for _ in range(4):
        model.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < first - 0.05
    assert hash_parameters(model.backbone) == before
    for name, tensor in model.trainable_state_dict().items():
        assert tensor.dtype == torch.float32
        assert (".lora_B." in name) <= (not torch.equal(tensor, weights[name])), name


@every_place
def test_gradients_reach_every_part(architecture: str, place: str, cell: Cell) -> None:
    cell("lora", architecture, "gradients reach")
    model = adapted(architecture, place)
    found = gradients(model)
    assert found.keys() == model.trainable_state_dict().keys()
    assert [name for name, gradient in found.items() if ".lora_" in name and not gradient.any()] == []


@every_place
def test_gradients_equal_finite_differences(architecture: str, place: str, cell: Cell) -> None:
    cell("lora", architecture, "finite differences")
    # Along its own gradient g the loss changes by 2 ε |g| from -ε to ε, up to ε³. In float64; the loss is
    # another one, from logits at all positions.
    model = adapted(architecture, place)
    batch = make_batch(model)
    climate = model.encode_climate(**climate_of(batch))
    given = {**text_of(batch), "climate_states": climate.states.detach().double()}
    model.backbone.double()
    model.fusions.double()
    labels = batch["labels"]
    model(**given, labels=labels).loss.backward()
    parameters = [p for name, p in model.named_parameters() if ".lora_" in name]
    directions = [p.grad.clone() for p in parameters]
    norm = torch.stack([direction.square().sum() for direction in directions]).sum().sqrt()
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += step * direction / norm
            logits = model(**given).logits[:, :-1].flatten(0, 1)
            values.append(torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()))
    rtol = 1e-6 if architecture in EXACT else 3e-3
    torch.testing.assert_close((values[0] - values[1]) / 2e-5, norm, rtol=rtol, atol=0)


@every_place
def test_recomputed_activations_give_equal_gradients(architecture: str, place: str, cell: Cell) -> None:
    cell("lora", architecture, "recomputation")
    model = adapted(architecture, place).train()
    expected = gradients(model)
    model.activation_checkpointing_enable()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@every_place
@torch.no_grad()
def test_generation_with_a_cache_equals_without(architecture: str, place: str, cell: Cell) -> None:
    cell("lora", architecture, "cache")
    model = adapted(architecture, place)
    batch = make_batch(model, answers=None)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 3}
    cached = model.generate(**batch, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))
    untrained = adapted(architecture, place, trained=False)
    assert not torch.equal(cached, untrained.generate(**batch, **options))


@every_place
@pytest.mark.parametrize("sampled", [False, True])
def test_stored_states_give_the_full_computation(
    architecture: str, place: str, sampled: bool, cell: Cell
) -> None:
    cell("lora", architecture, "prefix reuse")
    # Adapters start in block 2, a fusion at the output: blocks 0 and 1 may be stored, and no others.
    lora = {"rank": 2, "layers": [2]} if place == "all blocks" else {"rank": 2, "layers": {"last": 1}}
    model = make_model(architecture, sites="output", lora=lora, gates=0.5).train()
    assert model.prefix_site == (2 if place == "all blocks" else 3)
    open_adapters(model)
    if sampled:  # every token drawn: the estimate is the sum itself
        size = model.config.get_text_config().vocab_size
        model.sampled_vocabulary = SampledVocabulary(make_batch(model)["input_ids"].flatten(), size, size)
    full, expected = loss_of(model).item(), gradients(model)
    model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
    for _ in range(2):  # computed, then looked up
        torch.testing.assert_close(loss_of(model).item(), full, rtol=1e-5, atol=1e-6)
        found = gradients(model)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-5, msg=name)


@every_place
def test_saved_and_loaded_it_is_the_same(architecture: str, place: str, tmp_path: Path, cell: Cell) -> None:
    cell("lora", architecture, "save and load")
    model = adapted(architecture, place)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=tiny_backbone(architecture))
    weights, others = model.trainable_state_dict(), loaded.trainable_state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    batch = make_batch(model)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded(**batch).logits)


@pytest.mark.parametrize("fusion", [name for name in SMALL if " " not in name])
@pytest.mark.sampled(2)
def test_it_composes_with_every_fusion(architecture: str, fusion: str, tmp_path: Path, cell: Cell) -> None:
    cell("lora", architecture, "every fusion")
    sites = [1] if changes_text(fusion) else "input"
    model = make_model(architecture, sites=sites, fusion=fusion, gates=0.5, lora={"rank": 2})
    open_adapters(model)
    assert gradients(model).keys() == model.trainable_state_dict().keys()
    batch = make_batch(model, answers=None)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 3}
    cached = model.generate(**batch, **options)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))
    model.save_pretrained(tmp_path)
    loaded = ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=tiny_backbone(architecture))
    with torch.no_grad():
        assert torch.equal(loss_of(loaded), loss_of(model))
    assert torch.equal(loaded.generate(**batch, **options), cached)


@pytest.mark.slow
def test_resumed_it_is_the_uninterrupted_run(architecture: str, tmp_path: Path, cell: Cell) -> None:
    cell("lora", architecture, "train and resume")
    climate = write_climate(tmp_path / "climate.nc")
    folder = save_backbone(tmp_path / "backbone", architecture)
    lora = {"rank": 2, "dropout": 0.2, "layers": {"last": 2}}

    def config(output: str, steps: int) -> Any:
        training = {"steps": steps, "warmup_steps": 1, "schedule": "constant"}
        plain = make_config(climate, folder, tmp_path / output, training=training)
        return replace(plain, backbone=replace(plain.backbone, lora=LoraConfig(**lora)))

    quiet = {"say": lambda line: None}
    whole = run(config("whole", 8), **quiet)
    run(config("halved", 4), **quiet)
    halved = run(config("halved", 8), resume=True, **quiet)
    one, other = (ClimateTextForCausalLM.from_pretrained(result["model"]) for result in (whole, halved))
    others = other.trainable_state_dict()
    for name, tensor in one.trainable_state_dict().items():
        assert torch.equal(tensor, others[name]), name
    assert [name for name, tensor in others.items() if ".lora_B." in name and not tensor.any()] == []
    lines = [line for line in read_log(tmp_path / "whole" / "log.jsonl") if "loss" in line]
    assert all(line["gradient_norm/lora"] > 0 for line in lines)
