"""Weights of 16 bits that are multiplied in float32, against plain layers in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from climafuse.backbones import (
    LoadedBackbone,
    attach,
    compact_linear,
    find_blocks,
    hash_parameters,
    load_backbone,
    native,
    quantize_model,
    with_lora,
    with_trained_weights,
)
from climafuse.backbones.head import narrowed
from climafuse.backbones.widening import WidenedLinear, widen_products
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

IDS = torch.arange(5, 25)[None]


@pytest.fixture(autouse=True)
def _no_instructions(monkeypatch):
    """A processor that multiplies float32 only, whatever this one does."""
    monkeypatch.setattr(native, "_processor_multiplies", lambda dtype: False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows_at_once", [1000, 3])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_it_multiplies_in_float32(kind, rows_at_once, dtype, monkeypatch):
    """To the bits of the rounded result, as float32 gives it; so does a layer that is trained."""
    torch.manual_seed(0)
    plain = (nn.Linear(40, 24) if kind is nn.Linear else Conv1D(24, 40)).to(dtype)
    exact = (nn.Linear(40, 24) if kind is nn.Linear else Conv1D(24, 40)).to(dtype)
    exact.load_state_dict(plain.state_dict())
    exact.float()
    columns = 40 if kind is nn.Linear else 24
    monkeypatch.setitem(compact_linear.CHUNK_BYTES, "cpu", rows_at_once * columns * 4)
    layer = WidenedLinear(plain)
    assert (layer.in_features, layer.out_features) == (40, 24)
    assert layer.weight is plain.weight
    x = torch.randn(2, 5, 40).to(dtype).requires_grad_()
    grad = torch.randn(2, 5, 24).to(dtype)
    out = layer(x)
    out.backward(grad)
    y = x.detach().float().requires_grad_()
    expected = exact(y)
    expected.backward(grad.float())
    unit = torch.finfo(dtype).eps
    for found, right in (
        (out, expected),
        (x.grad, y.grad),
        (layer.weight.grad, exact.weight.grad),
        (layer.bias.grad, exact.bias.grad),
    ):
        assert found.dtype == dtype
        # One rounding of the result and, where a bias is added, one more.
        torch.testing.assert_close(found.float(), right, rtol=2 * unit, atol=unit * right.abs().max().item())
    numbers = torch.tensor([3, 0, 3])
    held = exact.weight if kind is nn.Linear else exact.weight.t()
    assert torch.equal(layer.rows(numbers, torch.float32), held[numbers])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_of_each_family(architecture):
    """Tensors stay what they are; logits and gradients are as near to float32 as those of plain layers."""
    plain, model, exact = (
        tiny_model(architecture, dtype=torch.bfloat16).requires_grad_(False) for _ in range(3)
    )
    exact.float()
    content = hash_parameters(model)
    tensors = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    widen_products(model)
    assert hash_parameters(model) == content
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == tensors
    assert not any(type(module) in (nn.Linear, Conv1D) for module in model.modules())
    results = []
    for one in (plain, model, exact):
        shift = torch.zeros(1, 20, 32, dtype=one.dtype, requires_grad=True)
        with attach(one, "input", lambda site, hidden, shift=shift: hidden + shift):
            logits = one(input_ids=IDS).logits
        assert logits.dtype == one.dtype
        logits.float().square().sum().backward()
        tokens = torch.tensor([3, 1, 300])
        with narrowed(one, tokens):
            few = one(input_ids=IDS).logits
        assert few.dtype == one.dtype
        torch.testing.assert_close(few, logits[..., tokens], rtol=0.02, atol=0.02)
        results.append((logits.float(), shift.grad.float()))
    for before, found, right in zip(*results, strict=True):
        assert (found - right).norm() < 1.3 * (before - right).norm()


def test_loading_and_a_model_in_memory(tmp_path):
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    loaded = load_backbone(tmp_path / "m")
    given = tiny_model("llama", dtype=torch.bfloat16)
    own = LoadedBackbone.from_model(given, tiny_tokenizer(), id="own")
    for model in (loaded.model, own.model):
        assert isinstance(find_blocks(model).head, WidenedLinear)
        assert find_blocks(model).head.weight is model.get_input_embeddings().weight
    exact = load_backbone(tmp_path / "m", dtype="float32")
    assert type(find_blocks(exact.model).head) is nn.Linear
    small = load_backbone(tmp_path / "m", quantization="int4")
    assert isinstance(find_blocks(small.model).head, WidenedLinear)
    assert small.identity == loaded.identity == exact.identity
    assert own.model(input_ids=IDS).logits.dtype == torch.bfloat16
    text = loaded.model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False)
    assert text.shape == (1, 24)
    loaded.model.save_pretrained(tmp_path / "again")
    tiny_tokenizer().save_pretrained(tmp_path / "again")
    assert hash_parameters(load_backbone(tmp_path / "again").model) == hash_parameters(loaded.model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_is_widened_can_be_quantized(architecture):
    one, other = (tiny_model(architecture, dtype=torch.bfloat16) for _ in range(2))
    widen_products(other)
    for model in (one, other):
        quantize_model(model, "int8")
    assert hash_parameters(one) == hash_parameters(other)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapters_and_weights_learn(architecture):
    model = tiny_model(architecture, dtype=torch.bfloat16).requires_grad_(False)
    widen_products(model)
    adapted = with_lora(model, {"rank": 2})
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(p.grad.norm() > 0 for name, p in trained.items() if ".lora_B." in name)
    own = with_trained_weights(model, "all")
    own(input_ids=IDS, labels=IDS).loss.backward()
    exact = tiny_model(architecture, dtype=torch.bfloat16).float()
    exact(input_ids=IDS, labels=IDS).loss.backward()
    right = {name: p.grad for name, p in exact.named_parameters()}
    for name, parameter in own.named_parameters():
        assert parameter.grad.dtype == torch.bfloat16
        if right[name].norm() > 1e-6:
            cosine = torch.cosine_similarity(parameter.grad.float().flatten(), right[name].flatten(), dim=0)
            assert cosine > 0.99, name
